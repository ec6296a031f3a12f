"""What really ran: the passes of every guided step, for tests, manifests and doubters."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

_MOST_NAMES = 4
"""Sites that a table names; LTX-2's isolated pass has one in every block."""


@dataclass(frozen=True)
class PassRecord:
    """One forward pass of the denoiser."""

    branches: tuple[str, ...]
    """The branches that shared the pass, in the order of its rows."""
    rows: int
    """Batch size of the pass."""
    start_block: int
    """First unit (block, or stage of a UNet) that ran; those before it were replayed from an earlier pass."""
    stop_block: int
    """Unit behind the last one that ran; what those from it on add was taken from an earlier step."""
    fired: tuple[str, ...]
    """Names of the sites and blocks at which the perturbation took place."""
    rows_each: int = 1
    """Rows that each branch takes for a clip: 2 where a second text has its own beside the same video."""


@dataclass(frozen=True)
class StepRecord:
    """One denoising step."""

    index: int
    """Step index, from 0."""
    noise_level: float
    """1 is pure noise, 0 is clean."""
    passes: tuple[PassRecord, ...]
    estimated: tuple[str, ...] = ()
    """Branches whose predictions follow from those of earlier steps (`guidance.reuse`)."""


@dataclass(repr=False)
class GuidanceReport:
    """The record of a guided run; grows while the pipeline runs. `report.table()` has the details."""

    method: str
    """Name of the guidance method."""
    block_count: int
    """Units of the denoiser that a pass can replay: its blocks, or the stages of a UNet."""
    steps: list[StepRecord] = field(default_factory=list)

    @property
    def block_passes(self) -> float:
        """Passes through the whole denoiser for one clip, counted in blocks: CFG costs 2 a step.

        A pass of two branches counts twice, and so does one that takes two rows for its branch; one that runs
        n of L blocks counts n / L.
        """
        return sum(
            p.rows_each * len(p.branches) * (p.stop_block - p.start_block) / self.block_count
            for step in self.steps
            for p in step.passes
        )

    def merge(self, ranks: Sequence[Sequence[StepRecord]]) -> None:
        """Take the steps of all ranks that shared their branches, in order of rank, for those of this one."""
        self.steps = [
            replace(same[0], passes=tuple(one for step in same for one in step.passes))
            for same in zip(*ranks, strict=True)
        ]

    def __repr__(self) -> str:
        if not self.steps:
            return f"GuidanceReport({self.method}: no step yet)"
        each = self.block_passes / len(self.steps)
        return f"GuidanceReport({self.method}: {len(self.steps)} steps, {each:.2f} passes a step)"

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(cell) for cell in row] for row in self._cells()]
        lines = ["".join(f"<th>{cell}</th>" for cell in head)]
        lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<p>{html.escape(repr(self))}</p><table>{body}</table>"

    def table(self) -> str:
        """The distinct kinds of step and their passes, as text."""
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([repr(self), *lines])

    def _cells(self) -> list[list[str]]:
        found = [["steps", "branches", "blocks run", "perturbed at"]]
        for (passes, estimated), count in self._kinds().items():
            rows = [
                [
                    ", ".join(one.branches),
                    f"{one.start_block} to {one.stop_block - 1} of {self.block_count}",
                    _shortened(one.fired) or "-",
                ]
                for one in passes
            ]
            if estimated:
                rows.append([", ".join(estimated), "estimated", "-"])
            found += [[str(count) if number == 0 else "", *row] for number, row in enumerate(rows)]
        return found

    def _kinds(self) -> Counter[tuple[tuple[PassRecord, ...], tuple[str, ...]]]:
        """Steps that did the same."""
        return Counter((step.passes, step.estimated) for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Totals and the distinct kinds of step, as plain JSON types."""
        return {
            "method": self.method,
            "blocks": self.block_count,
            "steps": len(self.steps),
            "block_passes": round(self.block_passes, 4),
            "step_kinds": [
                {
                    "steps": count,
                    "passes": [_plain(record) for record in passes],
                    "estimated": list(estimated),
                }
                for (passes, estimated), count in self._kinds().items()
            ],
        }


def _shortened(names: Sequence[str]) -> str:
    """The first names and the number of the others."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _plain(record: PassRecord) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(record).items()}
