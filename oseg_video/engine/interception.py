"""Calls of one object handed to someone else for the time being."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from oseg_video.engine.branches import GuidanceError


@contextmanager
def intercepted_calls(
    target: Any,
    implementation: str,
    answer: Callable[[Callable[..., Any], Callable[[], Any], inspect.BoundArguments], Any],
    refused: tuple[str, ...] = (),
) -> Iterator[None]:
    """Send calls of this one object through `answer(call, call as it was made, bound arguments)`.

    A call must be repeatable as it was made: diffusers' LoRA scaling looks for `attention_kwargs` among the
    keyword arguments only.

    The instance gets a subclass of its class for the time being: offload hooks and compilers rewrite the
    `forward` of an instance whenever they like, but `__call__` is looked up on the class, so ours stays
    the outermost. (`torch.nn.utils.parametrize` swaps classes in the same way.) `implementation` names the
    method that has the signature of a call, `refused` those that must not be called meanwhile.
    """
    original = type(target)
    if getattr(original, "_guided", False):
        raise GuidanceError("this pipeline is guided already; leave the first guided() before the next")
    _, *parameters = inspect.signature(getattr(original, implementation)).parameters.values()
    signature = inspect.Signature(parameters)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = partial(original.__call__, self)
        return answer(call, partial(call, *args, **kwargs), signature.bind(*args, **kwargs))

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise GuidanceError(f"{name}() cannot be called inside guided() with a perturbed method")

    namespace: dict[str, Any] = {name: partial(refuse, name) for name in refused if hasattr(target, name)}
    namespace |= {"__call__": __call__, "__module__": original.__module__, "_guided": True}
    metaclass: Any = type(original)
    target.__class__ = metaclass(original.__name__, (original,), namespace)
    try:
        yield
    finally:
        target.__class__ = original
