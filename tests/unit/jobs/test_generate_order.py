"""What every rank does before the first clip is made."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from oseg_video.config import GenerateJob
from oseg_video.guidance.methods import CFG
from oseg_video.jobs import generate as module
from oseg_video.parallel.mesh import ONE_RANK

PROMPT = "a red circle moving left on a black background"


@pytest.mark.parametrize("rank", [0, 1])
def test_no_rank_makes_a_clip_before_the_first_has_looked_at_what_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int
) -> None:
    done: list[str] = []

    class OneOfTwo:
        size = 2

        def __init__(self) -> None:
            self.rank = self.local_rank = rank

        @classmethod
        def started(cls) -> OneOfTwo:
            return cls()

        def joined(self, device: str, timeout: float) -> Any:
            return nullcontext()

        def device(self, asked: str) -> str:
            return asked

        def meet(self) -> None:
            done.append("meet")

    class Model:
        def __init__(self, *_: Any, **__: Any) -> None:
            done.append("load")

        def cut_prompts(self, job: GenerateJob) -> list[str]:
            return []

        def make_clip(self, *_: Any) -> None:
            done.append("clip")

    monkeypatch.setattr(module, "Ranks", OneOfTwo)
    monkeypatch.setattr(module, "LoadedModel", Model)
    monkeypatch.setattr(module, "make_mesh", lambda *_: ONE_RANK)
    monkeypatch.setattr(module, "degrees_for", lambda *_: ("data=2", ""))
    monkeypatch.setattr(module, "check_outputs", lambda *_, **__: done.append("look"))
    job = GenerateJob(
        model="embedded",
        prompts=(PROMPT,),
        guidance=CFG(guidance_scale=2.0),
        out=str(tmp_path / "a.mp4"),
        steps=2,
        frames=19,
        height=64,
        width=64,
        fps=12.0,
    )
    module.generate(job)
    assert done == [*(["look"] if rank == 0 else []), "meet", "load", "clip"]
