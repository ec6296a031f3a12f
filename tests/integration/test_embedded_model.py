"""The shipped model and classifier: sizes, formats, and that a sampled clip shows what its prompt says."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

from oseg_video.embedded import MODEL_PATH, dataset
from oseg_video.embedded.classifier import WEIGHTS, load_classifier
from oseg_video.embedded.dataset import FRAMES, SIZE, VOCABULARIES

FRESH_SEED = 77_003
"""No stage of the training draws from this data set."""


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


@pytest.fixture(scope="module")
def pipeline():
    pipe = MochiPipeline.from_pretrained(MODEL_PATH, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_sizes_are_within_what_a_package_may_carry():
    assert sum(file.stat().st_size for file in MODEL_PATH.rglob("*") if file.is_file()) < 15e6
    assert WEIGHTS.stat().st_size <= 2e6


def test_the_directory_holds_genuine_diffusers_parts(pipeline):
    assert isinstance(pipeline.transformer, MochiTransformer3DModel)
    assert isinstance(pipeline.vae, AutoencoderKLMochi)
    assert pipeline.scheduler.config.invert_sigmas
    assert (MODEL_PATH / "tokenizer" / "spiece.model").is_file()


def test_no_word_of_the_grammar_is_unknown_to_the_tokenizer(pipeline):
    captions = list(dataset.all_captions())
    for ids in pipeline.tokenizer(captions).input_ids:
        assert pipeline.tokenizer.unk_token_id not in ids
        assert len(ids) <= pipeline.tokenizer.model_max_length


def test_the_classifier_reads_fresh_clips(classifier):
    clips_BFCHW, attributes = dataset.sample_clips(FRESH_SEED, range(512))
    judged = [answer for part in (clips_BFCHW.float() / 255).split(64) for answer in classifier.judge(part)]
    for name in VOCABULARIES:
        right = sum(getattr(a, name) == getattr(b, name) for a, b in zip(attributes, judged, strict=True))
        assert right / len(attributes) >= 0.98, name


def test_features_are_finite_and_the_heads_read_nothing_else(classifier):
    clips_BFCHW = dataset.sample_clips(FRESH_SEED, range(4))[0].float() / 255
    features_BD = classifier.features(clips_BFCHW)
    assert features_BD.shape == (4, 96)
    assert features_BD.isfinite().all()
    for name, logits in classifier(clips_BFCHW).items():
        torch.testing.assert_close(classifier.heads[name](features_BD), logits)


def test_judging_keeps_nothing_for_gradients(classifier):
    kept = []
    hook = classifier.window.register_forward_hook(
        lambda _, inputs, output: kept.append(output.requires_grad)
    )
    clips_BFCHW = dataset.sample_clips(FRESH_SEED, range(2))[0].float() / 255
    classifier.judge(clips_BFCHW)
    classifier.judge_frames(clips_BFCHW[:, :7])
    hook.remove()
    assert kept == [False, False]


def test_a_longer_clip_is_judged_by_frames_over_its_whole_length(classifier):
    clips_BFCHW, attributes = dataset.sample_clips(FRESH_SEED, range(8))
    slow = (clips_BFCHW.float() / 255).repeat_interleave(2, dim=1)
    assert classifier.judge(slow) == attributes


@pytest.mark.parametrize(
    "shape", [(1, 18, 3, 64, 64), (1, 19, 3, 32, 64), (1, 3, 19, 64, 64), (19, 3, 64, 64)]
)
def test_clips_of_another_layout_are_refused(classifier, shape):
    with pytest.raises(ValueError, match="clips must be float"):
        classifier(torch.zeros(shape))


def test_integer_clips_are_refused(classifier):
    with pytest.raises(ValueError, match="clips must be float"):
        classifier(torch.zeros(1, 19, 3, 64, 64, dtype=torch.uint8))


def sample(pipeline, prompt: str, **options) -> torch.Tensor:
    """One clip, float [1, F, C, H, W] in [0, 1]."""
    settings = {"num_inference_steps": 20, "guidance_scale": 3.0, "max_sequence_length": 32} | options
    return pipeline(
        prompt,
        height=SIZE,
        width=SIZE,
        num_frames=FRAMES,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
        **settings,
    ).frames


@pytest.mark.parametrize(
    "prompt",
    ["a red circle moving left on a white background", "a blue square moving up on a black background"],
)
def test_a_sampled_clip_shows_what_its_prompt_says(pipeline, classifier, prompt):
    clip_BFCHW = sample(pipeline, prompt)
    assert clip_BFCHW.shape == (1, 19, 3, 64, 64)
    assert classifier.judge(clip_BFCHW) == [dataset.parse_caption(prompt)]


def test_padding_of_the_prompt_does_not_change_the_clip(pipeline):
    """Upstream pads to 256 tokens by default; the padding is masked, so only rounding differs."""
    prompt = "a green cross moving right on a gray background"
    short = sample(pipeline, prompt, num_inference_steps=4)
    long = sample(pipeline, prompt, num_inference_steps=4, max_sequence_length=256)
    torch.testing.assert_close(short, long, rtol=0, atol=1e-3)
