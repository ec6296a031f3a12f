"""Look at one self-attention while it runs: its queries and keys, and what other queries would be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oseg_video.adapters.denoiser import AttentionSite, VideoTokens
from oseg_video.engine.errors import GuidanceError, SilentGuidanceError
from oseg_video.engine.patching.attention import AttentionArguments, HookedMode, attention_arguments
from oseg_video.engine.patching.sites import ChangedQueries, Fired, eager, in_this_thread
from oseg_video.guidance.perturbations import AttentionView, QueryTransform

_MASKED = -1e3
"""What a mask adds to a logit is below this where the key is padding: -10000 or less in diffusers."""

See = Callable[[QueryTransform | None, AttentionView], None]


class ObservedAttention:
    """Shows what one attention site computes with; the attention runs once more for each transform.

    Every attention processor of diffusers ends in `scaled_dot_product_attention`, so its arguments there are
    what is shown: once a row where a processor goes row by row (Mochi). Calls `fired` with the site's name.
    """

    def __init__(
        self,
        site: AttentionSite,
        tokens: VideoTokens,
        transforms: tuple[QueryTransform, ...],
        see: See,
        fired: Fired,
    ) -> None:
        self._site = site
        self._tokens = tokens
        self._transforms = transforms
        self._see = see
        self._fired = fired
        self._arguments = _Arguments()
        self._again = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A context in which it is looked at."""
        attention: nn.Module = self._site.attention
        handles = (
            attention.register_forward_pre_hook(in_this_thread(self._before)),
            attention.register_forward_hook(in_this_thread(self._after), with_kwargs=True, always_call=True),
        )
        try:
            with eager():
                yield
        finally:
            self._arguments.leave()
            for handle in handles:
                handle.remove()

    def _before(self, _: nn.Module, __: Any) -> None:
        self._arguments = _Arguments()
        self._arguments.enter()

    def _after(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        # Runs after the hook of ranks that share tokens, so that the attention can run again from its start.
        self._arguments.leave()
        if self._again or output is None:  # it failed
            return
        self._show(None)
        self._again = True
        try:
            for transform in self._transforms:
                with self._changed(transform):
                    attention(*args, **kwargs)
                self._show(transform)
        finally:
            self._again = False
        self._fired(self._site.name)

    @contextmanager
    def _changed(self, transform: QueryTransform) -> Iterator[None]:
        def change(query: Tensor, key: Tensor) -> Tensor:
            return transform(query, key, self._tokens.grid)

        changed: list[str] = []
        with ChangedQueries(self._site, self._tokens, change, changed.append).installed(transform.site):
            yield
        if not changed:
            raise SilentGuidanceError(
                f"the queries of {self._site.name} could not be changed; fused projections or a foreign "
                f"attention processor may bypass it"
            )

    def _show(self, transform: QueryTransform | None) -> None:
        if not self._arguments.seen:
            raise SilentGuidanceError(
                f"{self._site.name} does not attend through torch's scaled_dot_product_attention, so it "
                f"cannot be looked at; use diffusers' native attention backend"
            )
        for one in self._arguments.seen:
            self._see(transform, self._view(one))

    def _view(self, given: AttentionArguments) -> AttentionView:
        query, key = given.query, given.key
        tokens, spread = self._tokens, self._tokens.spread
        first = tokens.text_first
        count = tokens.video if spread is None else len(spread.shard)
        text_last = key.shape[2] - first - count
        query_BNSD, video = query[:, :, first : first + count], key[:, :, first : first + count]
        if spread is not None:
            query_BNSD, video = (spread.gather(x, dim=2) for x in (query_BNSD, video))
        key_BNTD = _cat(key[:, :, :first], video, key[:, :, first + count :], dim=2)
        valid_BT = None
        if given.mask is not None:
            mask = given.mask.reshape((1,) * (4 - given.mask.ndim) + given.mask.shape)
            row_BT = mask[:, 0, first if mask.shape[2] > 1 else 0].expand(len(query), -1)
            valid_BT = row_BT if row_BT.dtype is torch.bool else row_BT > _MASKED
            last = valid_BT.shape[1] - text_last
            if not valid_BT[:, first:last].all():
                raise GuidanceError(
                    f"{self._site.name} attends to some of the video's tokens alone (causal_block_size), so "
                    f"that it cannot be looked at"
                )
            texts = valid_BT[:, :first], valid_BT[:, last:]
            seen = valid_BT.new_ones(len(valid_BT), video.shape[2])
            valid_BT = _cat(texts[0], seen, texts[1], dim=1)
        start = tokens.start - first
        return AttentionView(
            tokens.grid,
            query_BNSD[:, :, start : start + tokens.grid.tokens],
            key_BNTD,
            slice(tokens.start, tokens.start + tokens.grid.tokens),
            valid_BT,
            query.shape[-1] ** -0.5 if given.scale is None else given.scale,
        )


class _Arguments(HookedMode):
    """Notes the arguments of torch's attention function."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[AttentionArguments] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen.append(attention_arguments(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _cat(*parts: Tensor, dim: int) -> Tensor:
    """Without a copy where one part is all."""
    full = [part for part in parts if part.shape[dim]]
    return full[0] if len(full) == 1 else torch.cat(full, dim=dim)
