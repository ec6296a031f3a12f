"""What a perturbed branch does inside a block; an adapter knows where that is in a model."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from oseg_video.guidance.queries import oseg_queries, published_queries, seg_queries
from oseg_video.types import TokenGrid


class QueryTransform(Protocol):
    """Changes the video queries of one self-attention site.

    `site` says where: "normalised" is after QK-norm and before rotary embedding, per head, with query and
    key laid out [B, N, S, D]; "projected" is directly after `to_q` / `to_k`, over the full channel vector,
    laid out [B, S, C]. The result has the query's shape and dtype.
    """

    site: ClassVar[Literal["normalised", "projected"]]

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor: ...


@dataclass(frozen=True)
class BlurQueries:
    """SEG: Gaussian smoothing of the queries over the token grid (arXiv 2408.00760)."""

    blur_sigma: float | tuple[float, float]
    boundary: str
    site: ClassVar[Literal["normalised", "projected"]] = "normalised"

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        return seg_queries(query, grid, self.blur_sigma, boundary=self.boundary)


@dataclass(frozen=True)
class BlurOrthogonalQueries:
    """OSEG: smoothing of the component of each query that is orthogonal to its reference key."""

    blur_sigma: float | tuple[float, float]
    mix: float
    keep_parallel: float
    reference: str
    boundary: str
    site: ClassVar[Literal["normalised", "projected"]] = "normalised"

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
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


@dataclass(frozen=True)
class PublishedQueries:
    """The query transform of OSEG's released code, kept for reproduction only."""

    mix: float
    site: ClassVar[Literal["normalised", "projected"]] = "projected"

    def __call__(self, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
        return published_queries(query, key, mix=self.mix)


@dataclass(frozen=True)
class SkipBlock:
    """The hidden states pass the block unchanged (STG, residual form)."""


@dataclass(frozen=True)
class ReplaceAttention:
    """What self-attention mixes for the video tokens, before its output projection, is replaced.

    `source="values"`: by the tokens' own values, as if the attention map were the identity (PAG; LTX-Video's
    "attention values"). `source="input"`: by the input of the attention (LTX-Video's "attention skip").
    Text tokens of a joint attention keep their output.
    """

    source: Literal["values", "input"]


Change = QueryTransform | SkipBlock | ReplaceAttention
