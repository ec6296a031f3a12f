"""The recipe of LTX-Video's 13 B model against the numbers and the rule of Lightricks' own configuration."""

from __future__ import annotations

import math

import pytest
import torch

from oseg_video.config import read_recipe, recipe_path, resolve_job
from oseg_video.guidance.methods import STG
from oseg_video.guidance.perturbations import ReplaceAttention
from oseg_video.guidance.plan import Step

# Lightricks/LTX-Video, configs/ltxv-13b-0.9.7-dev.yaml, first pass
LEVELS = (1.0, 0.996, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180)
STAGES = tuple(
    zip(
        (1, 1, 6, 8, 6, 1, 1),
        (0, 0, 4, 4, 4, 2, 1),
        (1, 1, 0.5, 0.5, 1, 1, 1),
        ((), (11, 25, 35, 39), (22, 35, 39), (28,), (28,), (28,), (28,)),
        strict=True,
    )
)
INSIDE = (1.0, 0.998, 0.995, 0.99, 0.98, 0.95, 0.7)


def method() -> STG:
    path = recipe_path("ltx-13b-stg")
    job = resolve_job({"prompts": ["x"]}, path, family_of=lambda model, revision: "ltx")
    assert (job.model, job.steps, job.frames, job.height, job.width) == (
        "Lightricks/LTX-Video-0.9.7-dev",
        30,
        121,
        704,
        1216,
    )
    return job.guidance


def step(level: float) -> Step:
    return Step(index=3, count=30, noise_level=level, pipeline_scale=8.0)


def guided_by_lightricks_rule(p: dict[str, torch.Tensor], stage: tuple) -> torch.Tensor:
    """One sample in float64; a scale of 1, a push of 0 and a rescaling of 1 are off, step by step."""
    w, weight, share, _ = stage
    c = p["cond"]
    guided = c
    if w > 1:
        u = p["uncond"] * (c * p["uncond"]).sum() / p["uncond"].square().sum()
        guided = u + w * (c - u)
    if weight > 0:
        guided = guided + weight * (c - p["perturbed"])
        if share != 1:
            guided = guided * (share * c.std() / guided.std() + 1 - share)
    return guided


@pytest.mark.parametrize(
    ("level", "stage"),
    [
        *zip(INSIDE, STAGES, strict=True),
        *zip(LEVELS, STAGES, strict=True),
        *((math.nextafter(low, 0.0), after) for low, after in zip(LEVELS[:-1], STAGES[1:], strict=True)),
        (0.3, STAGES[-1]),
        (0.0, STAGES[-1]),
    ],
)
def test_the_plan_at_every_noise_level(level: float, stage: tuple) -> None:
    w, weight, _, blocks = stage
    plan = method().plan(step(level))
    perturbations = [b.perturbation for b in plan.branches.values() if b.perturbation is not None]
    assert set(plan.branches) == {"cond"} | ({"uncond"} if w > 1 else set()) | (
        {"perturbed"} if weight else set()
    )
    assert [p.blocks for p in perturbations] == ([blocks] if weight else [])
    assert all(p.change == ReplaceAttention("values") for p in perturbations)
    generator = torch.Generator().manual_seed(0)
    p = {n: torch.randn(1, 4, 5, generator=generator, dtype=torch.float64) for n in plan.branches}
    torch.testing.assert_close(plan.rule(**p), guided_by_lightricks_rule(p, stage))


def test_the_recipe_extends_the_familys() -> None:
    recipe = read_recipe(recipe_path("ltx-13b-stg"))
    assert recipe["dtype"] == read_recipe(recipe_path("ltx"))["dtype"]
    assert method().blocks_used == (11, 22, 25, 28, 35, 39)
    assert method().largest_guidance_scale == 8.0
