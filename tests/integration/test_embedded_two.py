"""The shipped model of two shapes: its parts, those that it shares, and what its clips show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLMochi, MochiPipeline

import oseg_video
from oseg_video.cli import main
from oseg_video.config import recipe
from oseg_video.embedded import MODEL_PATH, MODEL_TWO_PATH, component_path
from oseg_video.embedded.two_shapes import PHRASINGS, caption, sample_attributes
from oseg_video.embedded.two_shapes_judge import agreement, load_two_shape_judge
from oseg_video.jobs.loading.pipeline import find_model, fingerprint

PROMPT = "a red circle moving left and a blue square moving up on a black background"


@pytest.fixture(scope="module")
def pipeline() -> MochiPipeline:
    """As a user of diffusers loads it: the autoencoder is that of the other model."""
    vae = AutoencoderKLMochi.from_pretrained(MODEL_PATH / "vae", torch_dtype=torch.float32)
    pipe = MochiPipeline.from_pretrained(MODEL_TWO_PATH, vae=vae, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_both_models_together_are_small_enough_for_a_package() -> None:
    package = Path(oseg_video.__file__).parent
    data = [file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    assert sum(file.stat().st_size for file in data) < 25e6


def test_no_word_of_the_grammar_is_unknown_and_every_caption_fits(pipeline: MochiPipeline) -> None:
    tokenizer = pipeline.tokenizer
    captions = [
        caption(sample_attributes(1, index), phrasing)
        for index in range(200)
        for phrasing in range(len(PHRASINGS))
    ]
    for ids in tokenizer(captions).input_ids:
        assert tokenizer.unk_token_id not in ids and len(ids) <= tokenizer.model_max_length


def test_the_autoencoder_is_read_from_the_other_model_and_counts_for_the_digest(tmp_path: Path) -> None:
    source = find_model("embedded-two")
    assert component_path(MODEL_TWO_PATH, "vae") == MODEL_PATH / "vae"
    assert source.read_json("vae/config.json")["_class_name"] == "AutoencoderKLMochi"
    assert source.read_json("transformer/config.json")["num_layers"] == 5
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in MODEL_TWO_PATH.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(MODEL_TWO_PATH)).parent.mkdir(exist_ok=True)
            (copy / path.relative_to(MODEL_TWO_PATH)).write_bytes(path.read_bytes())
    assert fingerprint(copy) != fingerprint(MODEL_TWO_PATH)
    (copy / "vae").mkdir()
    for path in (MODEL_PATH / "vae").iterdir():
        (copy / "vae" / path.name).write_bytes(path.read_bytes())
    assert fingerprint(copy) == fingerprint(MODEL_TWO_PATH)


def test_a_clip_from_the_command_line_is_made_again_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "two.mp4"
    arguments = ["--model", "embedded-two", "--prompt", PROMPT, "--steps", "2", "--out", str(out)]
    assert main(["generate", *arguments]) == 0
    assert main(["reproduce", str(out), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["identical"]
    assert main(["evaluate", str(out), "--metrics", "alignment:two"]) == 0
    assert "alignment:two:binding" in capsys.readouterr().out


def test_a_method_by_name_is_that_of_its_own_recipe(pipeline: MochiPipeline) -> None:
    with oseg_video.guided(pipeline, "oseg") as report:
        latents = pipeline(
            PROMPT,
            height=64,
            width=64,
            num_frames=19,
            num_inference_steps=2,
            guidance_scale=3.0,
            max_sequence_length=32,
            output_type="latent",
        ).frames
    assert latents.isfinite().all()
    (block,) = recipe("embedded-two", "oseg").blocks
    fired = {name for step in report.steps for one in step.passes for name in one.fired}
    assert fired == {f"transformer_blocks.{block}.attn1"}


def test_its_clips_show_two_shapes_of_the_colours_that_the_prompt_names(pipeline: MochiPipeline) -> None:
    """By chance one clip of 15 has the two colours; how often all is right is a matter of the study."""
    wanted = [sample_attributes(77_004, index) for index in range(8)]
    frames = pipeline(
        [caption(one) for one in wanted],
        height=64,
        width=64,
        num_frames=19,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(index) for index in range(8)],
        max_sequence_length=32,
        output_type="pt",
    ).frames
    shown = load_two_shape_judge().judge(frames.float())
    right = [agreement(a, b) for a, b in zip(wanted, shown, strict=True)]
    assert sum(one["colour"] for one in right) >= 6
    assert sum(one["background"] for one in right) >= 7
