"""Cross-attention to two texts: what it gives for the second one changes what goes on of the first."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oseg_video.engine.errors import SilentGuidanceError
from oseg_video.engine.patching.attention import HookedMode, attention_arguments
from oseg_video.engine.patching.sites import Fired, eager, in_pieces, in_this_thread

_INPUTS = (1, "encoder_hidden_states"), (2, "attention_mask")
"""Place and name of the text and its mask among the inputs of every attention of diffusers."""

Combine = Callable[[Tensor, Tensor], Tensor]
"""What goes on, [B, S, C], of what attention mixes of a text and of the other text."""


class TwoTexts(HookedMode):
    """One cross-attention whose queries also look at another text, for as long as it is installed.

    The attention is given that text behind its own, as the block has made it of both. Its processor sees its
    own alone; its key and value projections are given both again, so that whatever else a processor does to
    keys is done to both; where it attends, each text is attended to by itself. The queries and the output
    projection are computed once. Calls `fired` with the site's name.
    """

    def __init__(
        self, name: str, attention: nn.Module, other_tokens: int, combine: Combine, fired: Fired
    ) -> None:
        """other_tokens: how many of the last tokens that the attention is given are the other text."""
        super().__init__()
        self._name = name
        self._attention: Any = attention
        self._count = other_tokens
        self._text_BTC = torch.empty(0)
        """The other text, once the attention is called."""
        self._mask: Tensor | None = None
        """What is added to the logits of its keys, [B, 1, T]."""
        self._combine = combine
        self._fired = fired
        self._own = -1
        """Tokens of the attention's own text, once it is projected."""
        self._seen = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A context in which the attention looks at both."""
        attention = self._attention
        with ExitStack() as stack:
            for projection in (attention.to_k, attention.to_v):
                hook = in_this_thread(self._with_other)
                stack.callback(projection.register_forward_pre_hook(hook).remove)
            before, after = in_this_thread(self._before), in_this_thread(self._after)
            stack.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(attention.register_forward_hook(after, always_call=True).remove)
            stack.callback(self.leave)
            stack.enter_context(eager())
            yield

    def _with_other(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        self._own = args[0].shape[1]
        return (torch.cat([args[0], self._text_BTC.to(args[0].dtype)], dim=1),)

    def _before(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The attention's inputs without the other text."""
        self._own, self._seen = -1, False
        given = {**dict(enumerate(args)), **kwargs}
        text, mask = (name if name in given else place for place, name in _INPUTS)
        # With an IP-Adapter: the text, and what is seen of images.
        texts, *images = given[text] if isinstance(given[text], tuple) else (given[text],)
        own = texts.shape[1] - self._count
        texts, self._text_BTC = texts.tensor_split((own,), dim=1)
        given[text] = (texts, *images) if images else texts
        if given.get(mask) is not None:
            given[mask], self._mask = given[mask].tensor_split((own,), dim=-1)
        self.enter()
        return tuple(given.pop(place) for place in range(len(args))), given

    def _after(self, _: nn.Module, __: Any, output: Any) -> None:
        self.leave()
        if output is None:  # it failed
            return
        if not self._seen:
            raise SilentGuidanceError(
                f"{self._name} does not attend through to_k, to_v and torch's scaled_dot_product_attention, "
                f"so it cannot look at a second text; unfuse its projections, and use diffusers' native "
                f"attention backend, without slices"
            )
        self._fired(self._name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = attention_arguments(*args, **(kwargs or {}))
        # Others look at an image (Wan 2.1 from an image).
        if self._own < 0 or given.key.shape[2] != self._own + self._count:
            return func(*args, **(kwargs or {}))
        self._seen = True
        other_mask = None if self._mask is None else self._mask[:, None]
        mixed_BSC = []
        for keys, mask in ((slice(self._own), given.mask), (slice(self._own, None), other_mask)):
            key, value = given.key[:, :, keys], given.value[:, :, keys]
            mixed = func(given.query, key, value, attn_mask=mask, scale=given.scale)
            mixed_BSC.append(mixed.transpose(1, 2).flatten(2))
        tokens = slice(0, mixed_BSC[0].shape[1])
        combined = in_pieces(self._combine, mixed_BSC[0], mixed_BSC[1], tokens, tokens=1)
        return combined.unflatten(2, (given.query.shape[1], -1)).transpose(1, 2)
