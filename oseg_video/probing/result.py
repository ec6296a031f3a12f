"""What the probe found, as a table, as JSON, and as a ranking of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

AS_IT_IS = "as it is"
"""The queries of a row that no transform has changed."""


@dataclass(frozen=True)
class AttentionRow:
    """Attention of one block at one noise level, with one kind of queries."""

    block: int
    noise_level: float
    queries: str
    """`AS_IT_IS`, or the transform: "oseg 5"."""
    heads: dict[str, list[float]]
    """Quantity (see `quantities.RowQuantities`) -> mean over prompts and queries, for each head."""

    def mean(self, quantity: str) -> float:
        """Over the heads."""
        return mean(self.heads[quantity])


@dataclass(frozen=True)
class EffectRow:
    """What perturbing one block alone does to the prediction at one noise level; means over prompts."""

    block: int
    noise_level: float
    change: float
    """`||C - C~|| / ||C||`."""
    cosine: float | None
    """Between `C - C~` and `C - U`; None where the pipeline runs no U."""


@dataclass(frozen=True)
class ProbeResult:
    """All that one probe found."""

    family: str
    method: str
    """Whose perturbation the effects are of."""
    change: str
    """The same in words."""
    prompts: tuple[str, ...]
    seed: int
    paths: dict[int, str]
    """Index -> full name of each block that was looked into."""
    attention: tuple[AttentionRow, ...]
    effects: tuple[EffectRow, ...]
    largest_share_of_bound: float
    """Largest curvature found, as a share of its bound; the theory says at most 1."""
    rows_checked: int
    """Attention rows in which curvature and bound were compared."""

    @property
    def noise_levels(self) -> list[float]:
        """From noise down; those of the steps that were looked at."""
        return sorted({row.noise_level for row in self.effects}, reverse=True)

    @property
    def transforms(self) -> list[str]:
        """Kinds of queries, in order."""
        return list(dict.fromkeys(row.queries for row in self.attention))

    def quantity(
        self, block: int, quantity: str, *, queries: str = AS_IT_IS, noise_level: float | None = None
    ) -> float:
        """A quantity of attention, mean over heads, and over noise levels unless one is given."""
        return mean(
            row.mean(quantity)
            for row in self.attention
            if row.block == block and row.queries == queries and noise_level in (None, row.noise_level)
        )

    def effect(self, block: int, noise_level: float | None = None) -> float:
        """`||C - C~|| / ||C||`, mean over noise levels unless one is given."""
        return mean(
            row.change
            for row in self.effects
            if row.block == block and noise_level in (None, row.noise_level)
        )

    def cosine(self, block: int, noise_level: float | None = None) -> float | None:
        """Between `C - C~` and `C - U`, mean over noise levels unless one is given."""
        found = [
            row.cosine
            for row in self.effects
            if row.block == block and noise_level in (None, row.noise_level) and row.cosine is not None
        ]
        return mean(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        fields = {"made_by": "oseg-video probe", **asdict(self)}
        return {**fields, "paths": {str(block): path for block, path in self.paths.items()}}

    def table(self) -> str:
        """Text, a row for each block: effects by noise level, and attention as it is."""
        levels = self.noise_levels
        head = ["block", *(f"change @{level:.2f}" for level in levels), "cosine", "entropy", "energy"]
        head += ["||diag(a)-aa'||", "curvature", "orthogonal"]
        rows = [head]
        for block in self.paths:
            cosine = self.cosine(block)
            row = [str(block), *(f"{self.effect(block, level):.4f}" for level in levels)]
            row.append("-" if cosine is None else f"{cosine:+.3f}")
            for name in ("entropy", "energy", "covariance_norm", "curvature", "orthogonal"):
                row.append(f"{self.quantity(block, name):.4g}")
            rows.append(row)
        return "\n".join([self._summary(), *_aligned(rows), *self._of_transforms()])

    def _summary(self) -> str:
        return (
            f"{self.family}, {len(self.paths)} blocks, prompts: {max(len(self.prompts), 1)}; change: "
            f"||C - C~|| / ||C||, in each block alone {self.change}; cosine: of C - C~ with C - U"
        )

    def _of_transforms(self) -> Sequence[str]:
        rows = [["queries", "entropy", "energy", "||diag(a)-aa'||", "curvature"]]
        names = ("entropy", "energy", "covariance_norm", "curvature")
        for queries in self.transforms:
            values = (mean(self.quantity(one, name, queries=queries) for one in self.paths) for name in names)
            rows.append([queries, *(f"{value:.4g}" for value in values)])
        bound = (
            f"curvature is at most {self.largest_share_of_bound:.3f} of its bound in {self.rows_checked} rows"
        )
        return ["", *_aligned(rows), "", bound]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
