"""Self-attention guidance on UNets: against diffusers' pipeline, a slow reference, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionSAGPipeline,
    StableDiffusionXLInpaintPipeline,
)
from torch import Tensor
from torch.testing import assert_close

from oseg_video import APG, SAG, GuidanceError, Reuse, SilentGuidanceError, guided
from oseg_video.adapters import adapter_for
from oseg_video.cli import main
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.plan import Branch, Perturbation
from oseg_video.types import SettingError
from tests.integration.families import CASES, MOCHI, SD15, SDXL, SVD, Case, quiet
from tests.tiny.unet import level_size, tiny_image, tiny_sdxl

# float32 networks against float64 ones, over one prediction or a few steps.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "pndm": PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    "ddim": DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "ddim-v": DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction"),
    "ddim-sample": DDIMScheduler(**BETAS, clip_sample=False, prediction_type="sample"),
}


# -- against diffusers


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("scale", (1.0, 5.0), ids=("plain", "cfg"))
@pytest.mark.parametrize("prompt", ("a red circle", ""))
def test_it_is_that_of_diffusers_own_pipeline(prompt: str, scale: float, scheduler: str) -> None:
    pipe = quiet(SD15.build())
    pipe.scheduler = SCHEDULERS[scheduler]
    theirs = quiet(StableDiffusionSAGPipeline(**pipe.components, requires_safety_checker=False))
    call = {"prompt": prompt, "guidance_scale": scale}
    stock = SD15.run(pipe, **call)
    expected = SD15.run(theirs, sag_scale=0.75, **call)
    with guided(pipe, SAG(scale=0.75)):
        assert_close(SD15.run(pipe, **call), expected, **ROUNDING)
    assert not torch.allclose(stock, expected, rtol=0, atol=0.1)
    assert torch.equal(SD15.run(pipe, **call), stock)


# -- against a slow float64 reference


class WritingAttention:
    """Self-attention written out, which keeps its map, averaged over heads: [B, S, S]."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        query, key, value = (
            part(hidden_states).unflatten(2, (attn.heads, -1)) for part in (attn.to_q, attn.to_k, attn.to_v)
        )
        weights = (torch.einsum("bind,bjnd->bnij", query, key) / math.sqrt(query.shape[-1])).softmax(-1)
        self.map = weights.mean(1)
        return attn.to_out[0](torch.einsum("bnij,bjnd->bind", weights, value).flatten(2))


def calls_of(case: Case, pipe: Any, guidance: SAG | None, **call: Any) -> tuple[list[Any], list[Tensor]]:
    """The arguments of every call of the UNet in one step, and what the scheduler was given."""
    calls: list[Any] = []
    given: list[Tensor] = []
    step = pipe.scheduler.step

    def record(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(dict(zip(("sample", "timestep"), args, strict=False)) | kwargs)

    def note(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(output)
        return step(output, *args, **kwargs)

    handle = pipe.unet.register_forward_pre_hook(record, with_kwargs=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", note)
        if guidance is None:
            case.run(pipe, num_inference_steps=1, **call)
        else:
            with guided(pipe, guidance):
                case.run(pipe, num_inference_steps=1, **call)
    handle.remove()
    return calls, given


def double(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: double(item) for key, item in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def reference_input(case: Case, pipe: Any, arguments: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """(input of the perturbed branch, prediction of its plain one, its own) of the rows in `arguments`."""
    unet = copy.deepcopy(pipe.unet).double()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.processor = WritingAttention()
    with torch.no_grad():
        (prediction,) = unet(**arguments, return_dict=False)
        sample = arguments["sample"]
        sigma = float(pipe.scheduler.sigmas[0])
        data, noise = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        channel = 1 if sample.ndim == 4 else 2
        noisy, others = sample.tensor_split((4,), dim=channel)
        if pipe.scheduler.config.prediction_type == "epsilon":
            eps = prediction
            clean = (noisy - noise * eps) / data
        else:
            clean = data * noisy - noise * prediction
            eps = noise * noisy + data * prediction
        height, width = level_size(case.size, len(unet.down_blocks) - 1)
        images = clean.flatten(0, -4)
        mask = (attention.processor.map.sum(1) > 1).double().reshape(len(images), 1, height, width)
        assert 0 < mask.mean() < 1
        mask = F.interpolate(mask, images.shape[-2:])
        taps = torch.arange(-4.0, 5.0, dtype=torch.float64)
        kernel = torch.exp(-0.5 * taps**2)
        kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
        smooth = F.conv2d(
            F.pad(images, [4] * 4, mode="reflect"), kernel.expand(4, 1, 9, 9), groups=images.shape[1]
        )
        degraded = (smooth * mask + images * (1 - mask)).reshape(clean.shape)
        changed = torch.cat([data * degraded + noise * eps, others], dim=channel)
        (weak,) = unet(**arguments | {"sample": changed}, return_dict=False)
    return changed, prediction, weak


@pytest.mark.parametrize("prompt", ("a red circle", ""))
@pytest.mark.parametrize("scale", (1.0, 5.0), ids=("plain", "cfg"))
@pytest.mark.parametrize("case", (SDXL, SVD), ids=lambda case: case.name)
def test_the_scheduler_gets_what_a_slow_reference_predicts(case: Case, scale: float, prompt: str) -> None:
    """SDXL's scheduler scales its input; SVD predicts v, folds frames and has an image beside the latents."""
    pipe = quiet(case.build())
    block = "mid:0" if case is SDXL else "mid:spatial:0"
    size = dataclasses.replace(case, size={**case.size, "height": 72, "width": 72})
    call = {**case.condition(prompt), **case.scale(scale)}
    (stock,), _ = calls_of(size, pipe, None, **call)
    stock = double(stock | {"return_dict": None})
    stock.pop("return_dict")
    rows = 1 if scale == 1 else 2
    changed, plain, weak = reference_input(size, pipe, stock)
    calls, (given,) = calls_of(size, pipe, SAG(scale=0.8, blocks=(block,)), **call)
    assert len(calls) == 2
    share = len(changed) // rows  # the unconditional rows come first
    assert_close(calls[1]["sample"].double(), changed[:share], **ROUNDING)
    *uncond, cond = plain.chunk(rows)
    base = uncond[0] if uncond else cond
    expected = base + scale * (cond - base) + 0.8 * (base - weak[:share])
    if rows == 1:
        expected = cond + 0.8 * (cond - weak)
    assert_close(given.double(), expected, **ROUNDING)


def test_channels_of_an_image_beside_the_latents_stay() -> None:
    pipe = quiet(tiny_sdxl(StableDiffusionXLInpaintPipeline, in_channels=9))
    image = tiny_image(SDXL.size)
    call = {"image": image, "mask_image": image.convert("L"), "num_inference_steps": 2, "strength": 1.0}
    inputs: list[Tensor] = []
    pipe.unet.register_forward_pre_hook(lambda _, args, __: inputs.append(args[0]), with_kwargs=True)
    with guided(pipe, SAG()):
        SDXL.run(pipe, **call)
    (plain, other), channels = inputs[:2], slice(4, None)
    assert torch.equal(other[:, channels], plain[:1, channels]) and other.shape[1] == 9
    assert not torch.allclose(other[:, :4], plain[:1, :4])


# -- how it is run


def test_nothing_is_replayed_and_other_branches_share_their_pass() -> None:
    pipe = quiet(SDXL.build())
    with guided(pipe, SAG(guidance_scale=4.0)) as report:
        with_reuse = SDXL.run(pipe)
    site = "mid_block.attentions.0.transformer_blocks.0.attn1"
    for step in report.steps:
        assert [(one.branches, one.start_block, one.fired) for one in step.passes] == [
            (("uncond", "cond"), 0, ()),
            (("perturbed",), 0, (site,)),
        ]
    with guided(pipe, SAG(guidance_scale=4.0), reuse=Reuse(prefix=False)):
        assert torch.equal(SDXL.run(pipe), with_reuse)


def test_its_text_term_may_be_another_methods() -> None:
    pipe = quiet(SDXL.build())
    with guided(pipe, SAG(text=APG(eta=0.0), scale=0.5)):
        projected = SDXL.run(pipe)
    with guided(pipe, SAG(scale=0.5)):
        assert not torch.allclose(SDXL.run(pipe), projected, rtol=0, atol=1e-3)


def test_every_row_of_a_batch_has_a_mask_of_its_own() -> None:
    pipe = quiet(SD15.build())
    prompts = ["a red circle", "nothing at all"]
    with guided(pipe, SAG()):
        together = SD15.run(pipe, prompts, seed=1)
        alone = [SD15.run(pipe, one, seed=1 + i) for i, one in enumerate(prompts)]
    assert_close(together, torch.cat(alone), **ROUNDING)


def test_half_precision_runs_through() -> None:
    pipe = quiet(SD15.build())
    with guided(pipe, SAG()):
        exact = SD15.run(pipe)
        pipe.to(torch.bfloat16)
        rough = SD15.run(pipe)
    assert rough.dtype == torch.bfloat16
    # A mask may differ at tokens whose mass is near the mean.
    assert (rough - exact).norm() < 0.3 * exact.norm()


def test_a_rank_cannot_run_the_branch_without_its_source() -> None:
    pipe = SDXL.build()
    runner = BranchRunner(adapter_for(pipe), pipe.unet, ("mid:0",))
    perturbed = Branch("uncond", Perturbation(("mid:0",), SAG().change, source="uncond"))
    assert runner.cost({"perturbed": perturbed}, ("uncond", "cond")) == math.inf
    both = {"uncond": Branch("uncond"), "perturbed": perturbed}
    assert runner.cost(both, ("uncond", "cond")) == 2


def test_explain_says_where_it_looks(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--model", "sdxl", "--guidance", "sag", "--prompt", "a cat", "--explain"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "rule      C + 4 (C - U) + 0.75 (U - P)" in said
    assert (
        "branch    perturbed: unconditional, its input smoothed (sigma 1) where self-attention gathers above "
        "average in block 24 (mid_block.attentions.0.transformer_blocks.0)"
    ) in said
    assert "cost      3.00 passes a step" in said


# -- what is refused


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in (SVD, SDXL, SD15)], ids=lambda case: case.name
)
def test_transformers_have_no_middle(case: Case) -> None:
    with (
        pytest.raises(GuidanceError, match="is a transformer of one resolution and has no middle; use pag"),
        guided(case.build(), SAG()),
    ):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("model", ("embedded", "mochi"))
def test_the_command_line_says_so_before_any_work(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--height", "480", "--width", "848"] if model == "mochi" else []
    arguments = ["generate", "--model", model, "--guidance", "sag", "--prompt", "a cat", "--explain", *size]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert "sag takes its mask from self-attention in the middle of a UNet; mochi is a" in output.err


@pytest.mark.parametrize(
    ("case", "block", "message"),
    (
        (SDXL, "mid", "must name one block, .* mid names mid_block.attentions.0.transformer_blocks.0, "),
        (SVD, "mid:temporal", "such as down.0:spatial:0; mid:temporal names mid_block"),
        (SVD, "mid:0", "must name one block"),
        (SDXL, "mid:7", "no block mid:7"),
    ),
)
def test_blocks_that_are_no_map_are_refused(case: Case, block: str, message: str) -> None:
    with pytest.raises(SettingError, match=message), guided(case.build(), SAG(blocks=(block,))):
        pytest.fail("the body must not run")


@pytest.mark.parametrize(
    "scheduler", (EDMEulerScheduler(), EulerDiscreteScheduler(prediction_type="flow_prediction"))
)
def test_schedulers_of_another_parametrisation_are_refused(scheduler: Any) -> None:
    pipe = SDXL.build()
    pipe.scheduler = scheduler
    with (
        pytest.raises(GuidanceError, match=f"not known with {type(scheduler).__name__}"),
        guided(pipe, SAG()),
    ):
        pytest.fail("the body must not run")


def test_attention_that_cannot_be_read_is_an_error() -> None:
    pipe = quiet(SDXL.build())
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = lambda attn, states, **_: states
    with guided(pipe, SAG()), pytest.raises(SilentGuidanceError, match="cannot be looked at"):
        SDXL.run(pipe)


def test_it_needs_a_scale_and_a_sigma_to_perturb() -> None:
    assert SAG(latent_blur_sigma=0.0).blocks_used == () == SAG(scale=0.0).blocks_used
    with pytest.raises(SettingError, match="latent_blur_sigma must be a finite number"):
        SAG(latent_blur_sigma=math.inf)
    assert MOCHI.blocks  # a transformer is guided as ever where SAG is off
    with guided(quiet(MOCHI.build()), SAG(scale=0.0)):
        pass
