"""What really ran: the passes of every guided step, for tests, manifests and doubters."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class PassRecord:
    """One forward pass of the denoiser."""

    branches: tuple[str, ...]
    """The branches that shared the pass, in the order of its rows."""
    rows: int
    """Batch size of the pass."""
    start_block: int
    """First unit (block, or stage of a UNet) that ran; those before it were replayed from an earlier pass."""
    fired: tuple[str, ...]
    """Names of the sites and blocks at which the perturbation took place."""


@dataclass(frozen=True)
class StepRecord:
    """One denoising step."""

    index: int
    """Step index, from 0."""
    noise_level: float
    """1 is pure noise, 0 is clean."""
    passes: tuple[PassRecord, ...]


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

        A pass of two branches counts twice; one that starts at block l counts (L - l) / L.
        """
        return sum(
            len(p.branches) * (self.block_count - p.start_block) / self.block_count
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
        for passes, count in Counter(step.passes for step in self.steps).items():
            for number, one in enumerate(passes):
                steps = str(count) if number == 0 else ""
                run = f"{one.start_block} to {self.block_count - 1} of {self.block_count}"
                found.append([steps, ", ".join(one.branches), run, ", ".join(one.fired) or "-"])
        return found

    def to_dict(self) -> dict[str, Any]:
        """Totals and the distinct kinds of step, as plain JSON types."""
        kinds = Counter(step.passes for step in self.steps)
        return {
            "method": self.method,
            "blocks": self.block_count,
            "steps": len(self.steps),
            "block_passes": round(self.block_passes, 4),
            "step_kinds": [
                {"steps": count, "passes": [_plain(record) for record in passes]}
                for passes, count in kinds.items()
            ],
        }


def _plain(record: PassRecord) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(record).items()}
