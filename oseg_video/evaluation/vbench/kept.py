"""What VBench has answered already: kept for the run, and in a file for a run that goes on after a stop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any


class KeptAnswers:
    """Answers by all that they depend on: plain JSON types by plain JSON types."""

    def __init__(self, folder: Path | None, versions: Mapping[str, str]) -> None:
        """folder: for the file `vbench.jsonl`, a line per answer; None to keep nothing longer than this run.

        versions: of what answers, and where it runs; answers of others are not found.
        """
        self._versions = dict(versions)
        self._lock = threading.Lock()
        self._path = folder / "vbench.jsonl" if folder else None

    def find(self, question: Any) -> Any:
        """The answer to the same question, or None."""
        with self._lock:
            return self._answers.get(self._key(question))

    def add(self, question: Any, answer: Any) -> None:
        """Keep an answer; from any thread."""
        with self._lock:
            self._answers[self._key(question)] = answer
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps([self._key(question), answer]) + "\n")

    @cached_property
    def _answers(self) -> dict[str, Any]:
        """Those of the file; read when first asked for, when the folder is this process's own."""
        if self._path is None or not self._path.exists():
            return {}
        lines = self._path.read_bytes().split(b"\n")[:-1]
        with open(self._path, "ab") as file:  # a run that was killed may have left half a line
            file.truncate(sum(len(line) + 1 for line in lines))
        answers = {}
        for line in lines:
            with contextlib.suppress(ValueError):  # a power cut leaves zeros where there was to be text
                key, answer = json.loads(line)
                answers[key] = answer
        return answers

    def _key(self, question: Any) -> str:
        text = json.dumps([self._versions, question], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
