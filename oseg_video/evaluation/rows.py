"""Rows of numbers on disk, one per clip: memory does not depend on their number, and a stop loses none.

N clips, B clips of a batch, D numbers a row.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oseg_video.evaluation.results import evaluation_versions


def file_state(path: Path) -> str:
    """What changes when a file, or one below a folder, is made anew: path, sizes, times of change."""
    try:
        inside = [Path(at, name) for at, _, names in os.walk(path, followlinks=True) for name in names]
        states = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(inside) or [path]]
    except OSError:
        states = []  # gone or unreadable: reading it says so
    return f"{path.resolve()}|{hashlib.sha256(json.dumps(states).encode()).hexdigest()}"


class RowStore:
    """A file of float64 rows that grows, and beside it whose rows they are.

    A row counts when its name is written, so a stop at any moment leaves complete rows.
    """

    def __init__(self, folder: Path | None, protocol: Mapping[str, Any]) -> None:
        """Open the rows that `folder` has of this protocol and these versions, or begin with none.

        folder: of this process alone; None for a temporary one, which goes when the store does.
        """
        depends = [protocol, evaluation_versions()]
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="oseg-video-"))
            # Rows that were taken stay readable: a mapped file does not need its name.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._numbers = folder / f"{digest}.f64"
        self._names = folder / f"{digest}.jsonl"
        self._place: dict[str, int] = {}
        self._width = 0
        self._count = 0
        self._recover()

    def __contains__(self, state: str) -> bool:
        return state in self._place

    def append(self, states: Sequence[str], rows_BD: Tensor) -> None:
        """Add the rows of clips in the given states."""
        rows_BD = rows_BD.detach().double().cpu().contiguous()
        self._width = self._width or rows_BD.shape[1]
        with open(self._numbers, "ab") as numbers:
            numbers.write(rows_BD.numpy().tobytes())
        with open(self._names, "a", encoding="utf-8") as names:
            for state in states:
                names.write(json.dumps([self._width, state]) + "\n")
                self._add(state)

    def take(self, states: Sequence[str]) -> Tensor:
        """Rows [N, D] of clips, mapped from the file; a copy only if they were not added in this order."""
        places = [self._place[state] for state in states]
        if not places:
            return torch.empty(0, self._width, dtype=torch.float64)
        size = self._count * self._width
        rows_ND = torch.from_file(str(self._numbers), size=size, dtype=torch.float64).view(-1, self._width)
        first = places[0]
        if places == list(range(first, first + len(places))):
            return rows_ND[first : first + len(places)]
        return rows_ND[torch.tensor(places)]

    def _add(self, state: str) -> None:
        self._place[state] = self._count
        self._count += 1

    def _recover(self) -> None:
        """Read what is there, and cut off what a stop left incomplete."""
        lines = self._names.read_bytes().split(b"\n")[:-1] if self._names.exists() else []
        size = self._numbers.stat().st_size if self._numbers.exists() else 0
        for number, line in enumerate(lines):
            whole = _read_line(line)
            if whole is None or (number + 1) * whole[0] * 8 > size:  # the machine stopped
                lines = lines[:number]
                break
            self._width, state = whole
            self._add(state)
        with open(self._names, "ab") as names:
            names.truncate(sum(len(line) + 1 for line in lines))
        with open(self._numbers, "ab") as numbers:
            numbers.truncate(self._count * self._width * 8)


def _read_line(line: bytes) -> tuple[int, str] | None:
    try:
        width, state = json.loads(line)
    except ValueError:  # of JSON, or of UTF-8
        return None
    return width, state
