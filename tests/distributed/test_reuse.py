"""Reuse between steps on several ranks: the clip of one, and one decision of all."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from torch.testing import assert_close

from oseg_video import CFG, OSEG, Reuse, guided
from oseg_video.guidance.methods import Guidance
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.mesh import ONE_RANK
from tests.distributed.ranks import Ranks
from tests.distributed.test_parity import BY_NAME, TOLERANCE, mesh
from tests.integration.families import SCALE

STEPS = 6
METHODS: dict[str, Guidance] = {
    "cfg": CFG(guidance_scale=SCALE),  # the pipeline's own scale: no rule
    "oseg": OSEG(guidance_scale=SCALE, blocks=(2,), perturb="cond"),
    "oseg, both": OSEG(guidance_scale=SCALE, blocks=(2,)),
}
REFRESH = {"uncond": 2, "perturbed": 3}
CACHE = {"mochi": 0.35, "wan": 0.1, "hunyuan": 0.45}
AXES = {
    "branch": Degrees(branch=2),
    "ulysses": Degrees(ulysses=2),
    "ring": Degrees(ring=2),
    "data": Degrees(data=2),
}


def make(case_name: str, method: str, reuse: Reuse, degrees: Degrees | None) -> tuple[Any, list[set[str]]]:
    """Final latents, and what was estimated in each step."""
    case = BY_NAME[case_name]
    pipe = case.build()
    pipe.set_progress_bar_config(disable=True)
    with guided(pipe, METHODS[method], reuse=reuse, mesh=mesh(degrees) if degrees else ONE_RANK) as report:
        latents = case.run(pipe, num_inference_steps=STEPS)
    return latents, [{*step.estimated} for step in report.steps]


def check(ranks: Ranks, case: str, method: str, reuse: Reuse, degrees: Degrees) -> list[set[str]]:
    latents, estimated = make(case, method, reuse, None)
    for mine, same in ranks.run(partial(make, case, method, reuse, degrees)):
        assert_close(mine, latents, **TOLERANCE)
        assert same == estimated
    return estimated


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    ("case", "method"), [("mochi", "oseg, both"), ("wan", "oseg"), ("wan", "cfg"), ("hunyuan", "oseg")]
)
def test_refreshed_branches(two_ranks: Ranks, case: str, method: str, axis: str) -> None:
    estimated = check(two_ranks, case, method, Reuse(refresh=REFRESH), AXES[axis])
    assert any(estimated)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    ("case", "method"), [("mochi", "oseg, both"), ("wan", "oseg"), ("wan", "cfg"), ("hunyuan", "oseg")]
)
def test_cached_steps(two_ranks: Ranks, case: str, method: str, axis: str) -> None:
    reuse = Reuse(cache=CACHE[case], refresh={"uncond": 2})
    estimated = check(two_ranks, case, method, reuse, AXES[axis])
    free = ["cond" in names for names in estimated[1:-1]]
    assert any(free) and not all(free)


@pytest.mark.parametrize("case", ("mochi", "wan"))
def test_branch_and_sequence_together(four_ranks: Ranks, case: str) -> None:
    reuse = Reuse(cache=CACHE[case], refresh=REFRESH)
    check(four_ranks, case, "oseg", reuse, Degrees(branch=2, ulysses=2))
