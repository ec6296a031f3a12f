"""Calls of a pipeline, and its calls of its denoiser, handed to someone else for the time being."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from oseg_video.engine.errors import GuidanceError
from oseg_video.engine.patching.objects import swapped_class
from oseg_video.types import Denoiser, Pipeline


@dataclass(frozen=True)
class MadeCall:
    """One call of a denoiser, as its pipeline made it."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    signature: inspect.Signature
    """Names its arguments."""

    def repeat(self) -> Any:
        """The call just as it was made."""
        return self.function(*self.args, **self.kwargs)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those that were given, by name."""
        return dict(self.signature.bind(*self.args, **self.kwargs).arguments)

    def again(self, **arguments: Any) -> Any:
        """The call with other arguments; by position those that were given so, as users' hooks know them.

        And by name those that were given so: diffusers' LoRA scaling looks for `attention_kwargs` there.
        """
        names = list(self.signature.parameters)[: len(self.args)]
        return self.function(*[arguments.pop(name) for name in names], **arguments)


@contextmanager
def intercepted_calls(
    pipe: Pipeline,
    answer: Callable[[Callable[..., Any], Mapping[str, Any], Mapping[str, Any]], Any],
    arrived: Callable[[Mapping[str, Any]], None],
) -> Iterator[None]:
    """Send calls of this one pipeline through `answer(the call, arguments with defaults, those given)`.

    The call is that which was made; keyword arguments add to what it was given. A subclass may change the
    arguments before it goes on to its base by `super().__call__`: `arrived` is told what arrives there, with
    defaults.

    The instance gets a subclass of its class for the time being, because `__call__` is looked up on the
    class. (`torch.nn.utils.parametrize` swaps classes in the same way.) Copies, pickles and `components` of
    the pipeline are those of the pipeline as it was.
    """
    original = type(pipe)
    if getattr(original, "_guided", False):
        raise GuidanceError("this pipeline is guided already; leave the first guided() before the next")
    owners = [one for one in original.__mro__ if "__call__" in vars(one)]
    signatures = [_without_self(vars(one)["__call__"]) for one in owners]
    # A class is freed late, as it is part of a circle. What it refers to must not keep a model in memory.
    answers, listeners = [answer], [arrived]

    @functools.wraps(original.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        as_made = partial(original.__call__, self, *args, **kwargs)
        named = [_named(signatures, args, kwargs, defaults=defaults) for defaults in (True, False)]
        return answers[0](as_made, *named)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        reduced: Any = original.__reduce_ex__(self, protocol)
        function, args, state, *rest = reduced
        args = tuple(original if one is guided_class else one for one in args)
        return function, args, _unpatched(state), *rest

    namespace: dict[str, Any] = {
        "__call__": __call__,
        "__new__": lambda _, *args, **kwargs: original(*args, **kwargs),  # a further pipeline is a plain one
        "__reduce_ex__": __reduce_ex__,
        "__module__": original.__module__,
        "_guided": True,
    }
    if hasattr(original, "components"):
        namespace["components"] = property(lambda self: _unpatched(original.components.__get__(self)))
    metaclass: Any = type(original)
    bases = [original]
    if len(owners) > 1:
        base = owners[-1]

        def listening(self: Any, *args: Any, **kwargs: Any) -> Any:
            listeners[0](_named(signatures[-1:], args, kwargs, defaults=True))
            return base.__call__(self, *args, **kwargs)

        # After all subclasses in the order of methods, and before the base.
        own = {"__call__": listening, "__module__": base.__module__}
        bases.append(metaclass(base.__name__, (base,), own))
    guided_class = metaclass(original.__name__, tuple(bases), namespace)
    try:
        with swapped_class(pipe, guided_class):
            yield
    finally:
        answers.clear()
        listeners.clear()


@contextmanager
def intercepted_denoiser(
    pipe: Pipeline,
    attribute: str,
    signature: inspect.Signature,
    answer: Callable[[MadeCall], Any],
    refused: tuple[str, ...] = (),
) -> Iterator[Denoiser]:
    """Send this one pipeline's calls of its denoiser through `answer`; what it holds instead meanwhile.

    The pipeline gets a twin of the denoiser for the time being: an object of a subclass over the very same
    attributes, which has its methods called on the real one. Whoever else holds the denoiser (another
    pipeline, maybe in another thread) holds the real one, which runs as ever; and what a user or an offload
    hook sets on either stays. `refused` names the methods that must not be called meanwhile.
    """
    denoiser = getattr(pipe, attribute)
    original: Any = type(denoiser)
    answers = [answer]  # as for the pipeline

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = MadeCall(self._real, args, kwargs, signature)
        return answers[0](call) if answers else call.repeat()

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise GuidanceError(
            f"{name}() cannot be called inside guided() where blocks are perturbed, reused or shared"
        )

    def through_twin(self: Any, name: str) -> Any:
        value = original.__getattribute__(self, name)
        if name.startswith("_") or not inspect.ismethod(value):
            return value
        # diffusers' hooks compare the module that they are called for with the one that they were made for.
        real: Denoiser = self._real
        method = getattr(real, name)

        @functools.wraps(method)
        def of_the_real(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self if result is real else result  # as of to(), which may be assigned

        return of_the_real

    namespace: dict[str, Any] = {name: partial(refuse, name) for name in refused if hasattr(denoiser, name)}
    namespace |= {
        "__call__": __call__,
        "__getattribute__": through_twin,
        "__new__": lambda _, *args, **kwargs: original(*args, **kwargs),
        "__deepcopy__": lambda self, memo: copy.deepcopy(self._real, memo),
        "__reduce_ex__": lambda self, protocol: self._real.__reduce_ex__(protocol),
        "__module__": original.__module__,
        "__slots__": ("_real",),  # the one thing that a twin has for itself
    }
    metaclass: Any = type(original)
    twin_class = metaclass(original.__name__, (original,), namespace)
    twin = object.__new__(twin_class)
    object.__setattr__(twin, "__dict__", vars(denoiser))
    object.__setattr__(twin, "_real", denoiser)
    # Past diffusers' own `__setattr__`, which would write it into the pipeline's configuration.
    vars(pipe)[attribute] = twin
    try:
        yield twin
    finally:
        answers.clear()
        if vars(pipe).get(attribute) is twin:
            vars(pipe)[attribute] = denoiser


def real(component: Any) -> Any:
    """The component itself, if this is its twin."""
    is_twin = isinstance(component, nn.Module) and "_real" in vars(type(component))
    return component._real if is_twin else component


def denoiser_signature(denoiser: Denoiser, inner: Denoiser, sample: str) -> inspect.Signature:
    """The signature of a denoiser's call, from the class that names the arguments.

    inner: the denoiser inside whatever wraps it. sample: an argument that every denoiser of its family has.
    """
    for module in (denoiser, inner):
        for one in type(module).__mro__:
            if "forward" in vars(one):
                signature = _without_self(vars(one)["forward"])
                if sample in signature.parameters:
                    return signature
    raise GuidanceError(
        f"the pipeline's denoiser is a {type(denoiser).__name__}, whose forward() does not name its "
        f"arguments ({sample}, ...) and which wraps no denoiser of this family"
    )


def _named(
    signatures: Sequence[inspect.Signature],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    defaults: bool,
) -> dict[str, Any]:
    """Arguments of a call by name, with defaults or without. A subclass may hand on `*args` and `**kwargs`.

    What no signature knows is left out: a subclass may take it out before it goes on, and if not, the call
    itself will complain.
    """
    outer, *inner = signatures
    takes_any = any(one.kind is one.VAR_KEYWORD for one in outer.parameters.values())
    known = {name: value for name, value in kwargs.items() if takes_any or name in outer.parameters}
    bound = outer.bind_partial(*args, **known)
    if defaults:
        bound.apply_defaults()
    named = dict(bound.arguments)
    rest: dict[Any, Any] = {
        parameter.kind: named.pop(name)
        for name, parameter in outer.parameters.items()
        if name in named and parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    positional = rest.get(inspect.Parameter.VAR_POSITIONAL, ())
    keywords = rest.get(inspect.Parameter.VAR_KEYWORD, {})
    return (_named(inner, positional, keywords, defaults=defaults) if inner else keywords) | named


def _without_self(function: Callable[..., Any]) -> inspect.Signature:
    _, *parameters = inspect.signature(function).parameters.values()
    return inspect.Signature(parameters)


def _unpatched(components: Mapping[str, Any]) -> dict[str, Any]:
    return {name: real(value) for name, value in components.items()}
