"""What two ranks that share the tokens see of a model is what one sees."""

from __future__ import annotations

from typing import Any

import pytest

from oseg_video import OSEG, GuidanceError, landscape, probe
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.probing.result import ProbeResult
from tests.integration.families import CASES, MOCHI, SCALE, quiet

from .ranks import Ranks

BY_NAME = {case.name: case for case in CASES}


def look(name: str, degrees: Degrees | None) -> ProbeResult:
    case = BY_NAME[name]
    given: dict[str, Any] = case.condition("a red circle") | case.scale(SCALE) | case.size | case.extra()
    return probe(
        quiet(case.build()),
        OSEG(blocks=(0,), blur_sigma=1.5),
        blocks=(0, 2),
        noise_levels=(1.0, 0.3),
        sigmas=(1.5,),
        queries=5,
        mesh=Mesh.of(degrees) if degrees else ONE_RANK,
        num_inference_steps=3,
        output_type="latent",
        **given,
    )


@pytest.mark.parametrize("degrees", [Degrees(ulysses=2), Degrees(ring=2)], ids=str)
@pytest.mark.parametrize("case", ["mochi", "ltx-condition", "ltx2-condition", "cogvideox", "hunyuan"])
def test_two_ranks_see_what_one_sees(two_ranks: Ranks, case: str, degrees: Degrees) -> None:
    alone = look(case, None)
    for found in two_ranks.run(look, case, degrees):
        assert (found.paths, found.rows_checked) == (alone.paths, alone.rows_checked)
        assert found.largest_share_of_bound == pytest.approx(alone.largest_share_of_bound, rel=1e-3)
        for mine, its in zip(found.attention, alone.attention, strict=True):
            assert (mine.block, mine.noise_level, mine.queries) == (its.block, its.noise_level, its.queries)
            for name, values in its.heads.items():
                assert mine.heads[name] == pytest.approx(values, rel=1e-3, abs=1e-5)
        for here, there in zip(found.effects, alone.effects, strict=True):
            assert here.change == pytest.approx(there.change, rel=1e-3)
            assert here.cosine == pytest.approx(there.cosine, abs=1e-3)


def refused(degrees: Degrees, drawn: bool) -> str:
    with pytest.raises(GuidanceError) as error:
        if drawn:
            landscape(MOCHI.build(), block=1, mesh=Mesh.of(degrees), prompt="a boat", num_inference_steps=2)
        else:
            look("mochi", degrees)
    return str(error.value)


@pytest.mark.parametrize("drawn", [False, True], ids=["probe", "landscape"])
def test_ranks_of_the_branch_axis_are_refused(two_ranks: Ranks, drawn: bool) -> None:
    assert set(two_ranks.run(refused, Degrees(branch=2), drawn)) == {
        "the probe runs its branches on one rank; give the ranks to ulysses or ring"
    }
