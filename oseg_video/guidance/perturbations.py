"""What a perturbed branch does inside a block; an adapter knows where that is in a model.

Data only: what computes is imported when it is called. A new perturbation of the queries is a class like
those below, in the file of its method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from oseg_video.guidance.validation import BlurSigma, validate_blur_sigma

if TYPE_CHECKING:
    from torch import Tensor

    from oseg_video.types import TokenGrid

Site = Literal["normalised", "projected"]
"""Where queries are changed: "normalised" is after QK-norm and before rotary embedding, per head, with query
and key laid out [B, N, S, D]; "projected" is directly after `to_q` / `to_k`, over the full channel vector,
laid out [B, S, C]."""


class QueryTransform(Protocol):
    """Changes the video queries of one self-attention site; the result has the query's shape and dtype."""

    site: ClassVar[Site]

    @property
    def words(self) -> str:
        """What it does, for `--explain`."""
        ...

    @property
    def identity(self) -> bool:
        """Whether it changes nothing, so that no perturbed branch is needed."""
        ...

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor: ...


@dataclass(frozen=True)
class BlurQueries:
    """SEG: Gaussian smoothing of the queries over the token grid (arXiv 2408.00760)."""

    blur_sigma: BlurSigma
    boundary: str
    site: ClassVar[Site] = "normalised"

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        from oseg_video.guidance.queries import seg_queries

        return seg_queries(query, grid, self.blur_sigma, boundary=self.boundary)

    @property
    def identity(self) -> bool:
        return validate_blur_sigma(self.blur_sigma) == (0, 0)

    @property
    def words(self) -> str:
        return f"queries smoothed (sigma {self.blur_sigma}, {self.boundary})"


@dataclass(frozen=True)
class BlurOrthogonalQueries:
    """OSEG: smoothing of the component of each query that is orthogonal to its reference key."""

    blur_sigma: BlurSigma
    mix: float
    keep_parallel: float
    reference: str
    boundary: str
    site: ClassVar[Site] = "normalised"

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        from oseg_video.guidance.queries import oseg_queries

        return oseg_queries(
            query,
            key,
            grid,
            blur_sigma=self.blur_sigma,
            mix=self.mix,
            keep_parallel=self.keep_parallel,
            reference=self.reference,
            boundary=self.boundary,
        )

    @property
    def identity(self) -> bool:
        smooths = validate_blur_sigma(self.blur_sigma) != (0, 0)
        return self.mix == 0 or (not smooths and self.keep_parallel == 1)

    @property
    def words(self) -> str:
        return (
            f"what of the queries is orthogonal to the {self.reference} key smoothed (sigma "
            f"{self.blur_sigma}, mix {self.mix:g}, {self.keep_parallel:g} of the rest kept, {self.boundary})"
        )


@dataclass(frozen=True)
class ReleasedQueries:
    """The query transform of OSEG's released code, kept for reproduction only."""

    mix: float
    site: ClassVar[Site] = "projected"

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        from oseg_video.guidance.queries import released_queries

        return released_queries(query, key, mix=self.mix)

    @property
    def identity(self) -> bool:
        return self.mix == 0

    @property
    def words(self) -> str:
        return f"queries changed as in OSEG's released code (mix {self.mix:g})"


@dataclass(frozen=True)
class SkipBlock:
    """The hidden states pass the block unchanged (STG, residual form)."""

    identity: ClassVar[bool] = False
    words: ClassVar[str] = "hidden states passed on unchanged"


@dataclass(frozen=True)
class ReplaceAttention:
    """What self-attention mixes for the video tokens, before its output projection, is replaced.

    `source="values"`: by the tokens' own values, as if the attention map were the identity (PAG; LTX-Video's
    "attention values"). `source="input"`: by the input of the attention (LTX-Video's "attention skip").
    Text tokens of a joint attention keep their output.
    """

    source: Literal["values", "input"]
    identity: ClassVar[bool] = False

    @property
    def words(self) -> str:
        return f"attention replaced by its {self.source}"


@dataclass(frozen=True)
class ExtrapolateAttention:
    """NAG: attention to the branch's text, away from that to the negative text (arXiv 2505.21179).

    The one change that looks at the text of the other condition; see `attention.extrapolated_attention`.
    """

    scale: float
    tau: float
    alpha: float

    def __call__(self, positive_BSC: Tensor, negative_BSC: Tensor) -> Tensor:
        from oseg_video.guidance.attention import extrapolated_attention

        return extrapolated_attention(
            positive_BSC, negative_BSC, scale=self.scale, tau=self.tau, alpha=self.alpha
        )

    @property
    def identity(self) -> bool:
        return self.scale == 1 or self.alpha == 0

    @property
    def words(self) -> str:
        return (
            f"attention to text away from that to the negative text (scale {self.scale:g}, tau "
            f"{self.tau:g}, alpha {self.alpha:g})"
        )


@dataclass(frozen=True)
class IsolateStreams:
    """No stream attends to the other: LTX-2's modality guidance (diffusers' `isolate_modalities`)."""

    identity: ClassVar[bool] = False
    words: ClassVar[str] = "attention between video and audio off"


@dataclass(frozen=True)
class AttentionView:
    """What one self-attention computes with, of one or several rows of the batch, after rotary embedding."""

    grid: TokenGrid
    """Of the clip's tokens."""
    query_BNSD: Tensor
    """Their queries."""
    key_BNTD: Tensor
    """All keys that they attend to, text among them."""
    own: slice
    """The keys of the clip's tokens."""
    valid_BT: Tensor | None
    """Keys that are no padding; None if all are valid."""
    scale: float
    """Factor of the logits, 1 / sqrt(D) as a rule."""


@dataclass(frozen=True)
class ObserveAttention:
    """Nothing is changed: the attention is shown as it is, and as it were with other queries.

    `see(block, None, view)` is called for each block, with its running index, then
    `see(block, transform, view)` for each of the `transforms`. Where ranks share the tokens each one is shown
    those of all.
    """

    see: Callable[[int, QueryTransform | None, AttentionView], None]
    transforms: tuple[QueryTransform, ...] = ()
    identity: ClassVar[bool] = True
    words: ClassVar[str] = "attention observed, nothing changed"


@dataclass(frozen=True)
class BlurAttended:
    """SAG: the branch starts from latents that are smoothed where another branch's attention gathers.

    The one change of a branch's input: `Perturbation.source` names the branch that it looks at
    (arXiv 2210.00939).
    """

    blur_sigma: float
    """Width of the smoothing in latents."""

    @property
    def identity(self) -> bool:
        return self.blur_sigma == 0

    @property
    def words(self) -> str:
        return f"its input smoothed (sigma {self.blur_sigma:g}) where self-attention gathers above average"


Change = (
    QueryTransform
    | SkipBlock
    | ReplaceAttention
    | ExtrapolateAttention
    | IsolateStreams
    | ObserveAttention
    | BlurAttended
)
"""What makes a branch a perturbed one: `words` say it, `identity` says that it is nothing."""
