"""Where sampling stands: schedulers that do not count, that repeat timesteps, that ask twice in a step."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from oseg_video import STG, guided
from oseg_video.engine.position import noise_level
from tests.integration.families import COGVIDEOX, SCALE, SDXL, Case, over, quiet

GUIDANCE = STG(guidance_scale=SCALE, blocks=(2,), interval=(0.5, 1.0))
"""Perturbs the second half of the steps."""
# Some have no `begin_index`, some are of the second order, and PNDM has one timestep twice.
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
)


def with_scheduler(pipe: Any, name: str) -> Any:
    kwargs = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012, **kwargs)
    return quiet(pipe)


def level_at(scheduler: Any, timestep: float) -> float:
    """The share of noise at a timestep, from the products of alphas alone, logarithms interpolated."""
    kept = scheduler.alphas_cumprod.double().numpy()
    log_sigma = np.interp(timestep, np.arange(len(kept)), np.log((1 - kept) / kept) / 2)
    return 1 / (1 + math.exp(-log_sigma))


@pytest.mark.parametrize(
    "name",
    ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "LTXEulerAncestralRFScheduler"),
)
def test_the_noise_level_of_flow_matching_is_its_sigma(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4)
    levels = [noise_level(scheduler, index) for index in range(4)]
    assert levels == pytest.approx(scheduler.sigmas[:4].tolist()) and levels[0] == 1


def run(case: Case, pipe: Any, **arguments: Any) -> tuple[Any, list[float]]:
    """The report of a guided call, and the timestep that each of its steps gave the denoiser."""
    asked: list[float] = []
    step = pipe.scheduler.step

    def note(output: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(float(timestep))
        return step(output, timestep, *args, **kwargs)

    pipe.scheduler.step = note
    with guided(pipe, GUIDANCE) as report:
        case.run(pipe, **arguments)
    del pipe.scheduler.step
    return report, asked


def check(report: Any, asked: list[float], pipe: Any) -> None:
    count = len(asked)
    assert [step.index for step in report.steps] == list(range(count))
    expected = [level_at(pipe.scheduler, timestep) for timestep in asked]
    # Sigmas are kept in float32, and the timesteps of some schedulers are rounded to whole ones.
    assert [step.noise_level for step in report.steps] == pytest.approx(expected, abs=2e-3)
    fired = [any(one.fired for one in step.passes) for step in report.steps]
    assert fired == [2 * i >= count for i in range(count)]


@pytest.mark.parametrize("ending", (None, 0.8), ids=("whole", "denoising_end"))
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_is_found(name: str, ending: float | None) -> None:
    pipe = with_scheduler(SDXL.build(), name)
    report, asked = run(SDXL, pipe, num_inference_steps=8, denoising_end=ending)
    second_order = "Heun" in name or "KDPM2" in name
    repeated = name == "PNDMScheduler"
    assert len(asked) >= (6 if ending else 8)
    assert (len(asked) > 9) == second_order and (len(set(asked)) < len(asked)) >= (repeated or "Heun" in name)
    check(report, asked, pipe)


@pytest.mark.parametrize("name", ("DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"))
def test_a_refiner_begins_in_the_middle(name: str) -> None:
    base = with_scheduler(SDXL.build(), name)
    refiner = quiet(diffusers.StableDiffusionXLImg2ImgPipeline(**base.components))
    latents = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(3))
    arguments = {"height": None, "width": None, "image": latents, "num_inference_steps": 10}
    run_arguments = {k: v for k, v in arguments.items() if v is not None}
    case = Case("sdxl-refiner", SDXL.build, {}, condition=SDXL.condition, result="images")
    for start in ({"strength": 0.5}, {"denoising_start": 0.6}):
        report, asked = run(case, refiner, **run_arguments, **start)
        assert 3 <= len(asked) <= 6
        check(report, asked, refiner)


@pytest.mark.parametrize(
    "name", ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler")
)
def test_a_scheduler_that_is_not_told_where_it_begins(name: str) -> None:
    """It finds its first step by the timestep, as with pipelines of users that know no `set_begin_index`."""
    base = with_scheduler(SDXL.build(), name)
    refiner = quiet(diffusers.StableDiffusionXLImg2ImgPipeline(**base.components))
    refiner.scheduler.set_begin_index = lambda *_: None
    latents = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(3))
    case = Case("sdxl-refiner", SDXL.build, {}, condition=SDXL.condition, result="images")
    report, asked = run(case, refiner, image=latents, num_inference_steps=10, strength=0.5)
    assert len(asked) >= 5
    check(report, asked, refiner)


@pytest.mark.parametrize("ending", (None, 0.8), ids=("whole", "denoising_end"))
@pytest.mark.parametrize("name", ("DDIMScheduler", "PNDMScheduler"))
def test_timesteps_that_lie_elsewhere_are_found_by_their_values(name: str, ending: float | None) -> None:
    """A scheduler may make its tensor of timesteps anew, so that the pipeline's is another one."""
    pipe = with_scheduler(SDXL.build(), name)
    scale = pipe.scheduler.scale_model_input

    def made_anew(sample: Tensor, timestep: Any = None) -> Any:
        pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
        return scale(sample, timestep)

    pipe.scheduler.scale_model_input = made_anew
    report, asked = run(SDXL, pipe, num_inference_steps=8, denoising_end=ending)
    assert len(asked) >= (6 if ending else 8)
    check(report, asked, pipe)


def test_timesteps_that_are_given_twice() -> None:
    pipe = with_scheduler(SDXL.build(), "DDIMScheduler")
    pipe.scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012)
    report, asked = run(SDXL, pipe, timesteps=[901, 601, 301, 1], num_inference_steps=None)
    assert asked == [901, 601, 301, 1]
    check(report, asked, pipe)
    pipe.scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012)
    report, asked = run(SDXL, pipe, timesteps=[900, 900, 600, 600, 300, 1], num_inference_steps=None)
    assert asked == [900, 900, 600, 600, 300, 1]
    check(report, asked, pipe)


@over(COGVIDEOX)
@pytest.mark.parametrize("name", ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"))
def test_cogvideox_with_schedulers_that_do_not_count(case: Case, pipe: Any, name: str) -> None:
    pipe.scheduler = getattr(diffusers, name)()
    with guided(pipe, GUIDANCE) as report:
        case.run(pipe, num_inference_steps=6)
    assert [step.index for step in report.steps] == list(range(6))
    levels = [step.noise_level for step in report.steps]
    assert levels == sorted(levels, reverse=True)


def test_it_is_the_same_in_a_second_call() -> None:
    pipe = with_scheduler(SDXL.build(), "DDIMScheduler")
    with guided(pipe, GUIDANCE) as report:
        for _ in range(2):
            SDXL.run(pipe, num_inference_steps=4, denoising_end=0.5)
    assert [step.index for step in report.steps] == [0, 1] * 2
