"""`oseg-video generate` for every family, from text and from an image, on tiny pipelines in folders."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    LTX2ImageToVideoPipeline,
    WanImageToVideoPipeline,
    WanVideoToVideoPipeline,
)
from PIL import Image

from oseg_video.adapters import adapter_for_class, all_adapters
from oseg_video.cli import main
from oseg_video.config import GenerateJob
from oseg_video.config.manifest import read_manifest
from oseg_video.guidance.methods import CFG, METHODS, BlockGuidance
from oseg_video.jobs.loading import hub
from oseg_video.jobs.loading import pipeline as loading
from oseg_video.jobs.model import LoadedModel
from oseg_video.media import Sound, frames_sha256, read_clip, read_sound, to_uint8
from tests.integration.families import NO_OWN_GUIDANCE
from tests.tiny import (
    LTX_SIZE,
    MOCHI_SIZE,
    TEXT_LENGTH,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    tiny_ltx,
    tiny_mochi,
)
from tests.tiny.cogvideox import COGVIDEOX_SIZE, tiny_cogvideox, tiny_cogvideox_5b
from tests.tiny.hunyuan import (
    HUNYUAN15_SIZE,
    HUNYUAN_SIZE,
    tiny_hunyuan,
    tiny_hunyuan15,
    tiny_hunyuan_image,
)
from tests.tiny.ltx2 import LTX2_SIZE, tiny_ltx2
from tests.tiny.unet import SDXL_SIZE, SVD_SIZE, tiny_sd15, tiny_sdxl, tiny_svd
from tests.tiny.wan import (
    WAN_5B_SIZE,
    WAN_SIZE,
    tiny_wan,
    tiny_wan_5b,
    tiny_wan_two_experts,
)

RED = "a red circle"
PROMPT = ("--prompt", RED)
SHORT_TEXT = (f"--max-sequence-length={TEXT_LENGTH}",)


@dataclass(frozen=True)
class Model:
    """A tiny pipeline, and what a short clip of it takes."""

    build: Callable
    size: dict[str, int]
    flags: tuple[str, ...] = ()
    image: bool = False
    prompt: tuple[str, ...] = PROMPT
    block: str = "1"


# On the list of sizes of image to video, and one that the pipeline passes over for an image of this size.
HUNYUAN15_LISTED_SIZE = {"height": 80, "width": 48, "num_frames": 9}

LTX_CONDITION = partial(tiny_ltx, LTXConditionPipeline, timestep_vae=True)

MODELS = {
    "mochi": Model(tiny_mochi, MOCHI_SIZE, SHORT_TEXT),
    "ltx": Model(tiny_ltx, LTX_SIZE, SHORT_TEXT),
    "ltx-image": Model(partial(tiny_ltx, LTXImageToVideoPipeline), LTX_SIZE, SHORT_TEXT, image=True),
    "ltx-timestep-vae": Model(partial(tiny_ltx, timestep_vae=True), LTX_SIZE, SHORT_TEXT),
    "ltx-condition": Model(LTX_CONDITION, LTX_SIZE, SHORT_TEXT),
    "ltx-condition-image": Model(LTX_CONDITION, LTX_SIZE, SHORT_TEXT, image=True),
    "ltx2": Model(tiny_ltx2, LTX2_SIZE, SHORT_TEXT),
    "ltx2-image": Model(partial(tiny_ltx2, LTX2ImageToVideoPipeline), LTX2_SIZE, SHORT_TEXT, image=True),
    "hunyuan": Model(tiny_hunyuan, HUNYUAN_SIZE, block="dual:1"),
    "hunyuan-image": Model(tiny_hunyuan_image, HUNYUAN_SIZE, image=True, block="single:1"),
    "hunyuan-image-replace": Model(
        partial(tiny_hunyuan_image, "token_replace"), HUNYUAN_SIZE, image=True, block="dual:1"
    ),
    # A guider that is off: whatever scale a clip has comes from its settings.
    "hunyuan15": Model(partial(tiny_hunyuan15, guidance_scale=1.0), HUNYUAN15_SIZE),
    "hunyuan15-image": Model(
        partial(tiny_hunyuan15, HunyuanVideo15ImageToVideoPipeline, guidance_scale=1.0),
        HUNYUAN15_LISTED_SIZE,
        image=True,
    ),
    "wan": Model(tiny_wan, WAN_SIZE, SHORT_TEXT),
    "wan-image": Model(partial(tiny_wan, WanImageToVideoPipeline), WAN_SIZE, image=True),
    "wan-experts": Model(tiny_wan_two_experts, WAN_SIZE, SHORT_TEXT),
    "wan-5b": Model(tiny_wan_5b, WAN_5B_SIZE, SHORT_TEXT),
    "wan-5b-image": Model(tiny_wan_5b, WAN_5B_SIZE, SHORT_TEXT, image=True),
    "cogvideox": Model(tiny_cogvideox, COGVIDEOX_SIZE, SHORT_TEXT),
    "cogvideox-image": Model(
        partial(tiny_cogvideox_5b, CogVideoXImageToVideoPipeline), COGVIDEOX_SIZE, SHORT_TEXT, image=True
    ),
    "svd": Model(tiny_svd, SVD_SIZE, image=True, prompt=(), block="mid:spatial"),
    "sdxl": Model(tiny_sdxl, {**SDXL_SIZE, "num_frames": 1}, block="mid"),
    "sd15": Model(tiny_sd15, {**SDXL_SIZE, "num_frames": 1}, block="mid"),
}
IMAGES = ("sdxl", "sd15")
WITH_SOUND = ("ltx2", "ltx2-image")
LOSSLESS = ("--dtype=float32", "--no-vae-tiling", "--steps=2")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder of a tiny pipeline by name, saved once."""
    root = tmp_path_factory.mktemp("families")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        model = MODELS[name]
        key = str(model.build)
        if key not in made:
            pipe = model.build()
            pipe.save_pretrained(root / name)
            made[key] = root / name
        return made[key]

    return folder


@cache
def built_hunyuan(pipeline):
    builders = {
        "HunyuanVideoPipeline": tiny_hunyuan,
        "HunyuanVideoImageToVideoPipeline": tiny_hunyuan_image,
        "HunyuanVideo15Pipeline": tiny_hunyuan15,
        "HunyuanVideo15ImageToVideoPipeline": tiny_hunyuan15,
    }
    return builders[pipeline]()


@pytest.fixture(autouse=True)
def tiny_hunyuan_text(monkeypatch):
    """What no file stores of the tiny HunyuanVideo pipelines is set anew: the filler that the tokenizers put
    for the templates' instructions, and the text lengths of 1.5, attributes of the pipeline."""
    original = loading.load_pipeline

    def load(source, *args, **kwargs):
        pipe = original(source, *args, **kwargs)
        if source.adapter.family in ("hunyuan", "hunyuan15"):
            tiny = built_hunyuan(type(pipe).__name__)
            pipe.tokenizer = tiny.tokenizer
        if source.adapter.family == "hunyuan15":
            for name in ("tokenizer_max_length", "tokenizer_2_max_length", "vision_num_semantic_tokens"):
                setattr(pipe, name, getattr(tiny, name))
        return pipe

    monkeypatch.setattr(loading, "load_pipeline", load)


@pytest.fixture
def loaded(monkeypatch):
    """The pipelines that jobs load, as they come."""
    pipes, original = [], loading.load_pipeline

    def load(*args, **kwargs):
        pipes.append(original(*args, **kwargs))
        return pipes[-1]

    monkeypatch.setattr(loading, "load_pipeline", load)
    return pipes


@pytest.fixture
def unloadable(monkeypatch):
    """Loading weights fails the test: what is refused must be refused before."""
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))


@pytest.fixture
def cat(tmp_path):
    """An image whose size no model makes."""
    noise = np.random.default_rng(0).integers(0, 255, (50, 100, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def call(folders, name, *flags, image=None, out=None):
    """Arguments of `generate` for a model."""
    model = MODELS[name]
    size = [f"--{key.removeprefix('num_')}={value}" for key, value in model.size.items()]
    fps = [] if name in IMAGES else ["--fps=8"]
    arguments = ["generate", "--model", folders(name), *model.prompt, *size, *fps, *model.flags, *LOSSLESS]
    if model.image:
        arguments += ["--image", image]
    if out is not None:
        arguments += ["--out", out]
    return [str(argument) for argument in (*arguments, *flags)]


def run(capsys, arguments):
    capsys.readouterr()  # what saving a pipeline said
    code = main([*arguments, "--quiet", "--json"])
    output = capsys.readouterr()
    assert code == 0, output.err
    return [json.loads(line) for line in output.out.splitlines()]


def refused(capsys, arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and re.fullmatch(r"oseg-video: error: [^\n]+\n", output.err), output.err
    return output.err


@pytest.mark.parametrize("name", MODELS)
def test_a_clip_of_every_family(capsys, tmp_path, folders, cat, name):
    model = MODELS[name]
    made = {}
    suffix = "png" if name in IMAGES else "mp4"
    for method in ("cfg", "oseg"):
        blocks = [f"--blocks={model.block}"] if method == "oseg" else []
        out = tmp_path / f"{method}.{suffix}"
        scale = [] if name == "svd" else ["--guidance-scale=3"]
        flags = ["--guidance", method, *scale, *blocks]
        (line,) = run(capsys, call(folders, name, *flags, image=cat, out=out))
        made[method] = line["sha256"]
    assert made["cfg"] != made["oseg"]
    manifest = read_manifest(out)
    size = {"num_frames": 1, **model.size}
    clip = manifest.clip
    assert (clip["frames"], clip["height"], clip["width"]) == (
        size["num_frames"],
        size["height"],
        size["width"],
    )
    assert manifest.passes["steps"] == 2
    passes = [p for kind in manifest.passes["step_kinds"] for p in kind["passes"]]
    conditions = {branch.removesuffix("_perturbed") for p in passes for branch in p["branches"]}
    isolated = {"isolated"} if name in WITH_SOUND else set()  # LTX-2's recipe has modality guidance
    assert conditions == {"cond", "uncond"} | isolated
    assert (manifest.image is not None) == model.image
    assert main(["reproduce", str(out), "--quiet", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["identical"] and again["differences"] == []


def test_sound_is_in_the_file_and_its_digest_in_the_manifest(capsys, tmp_path, folders, loaded):
    out = tmp_path / "a.mp4"
    flags = ["--guidance=cfg", "--guidance-scale=3", "--audio-guidance-scale=5"]
    run(capsys, call(folders, "ltx2", *flags, out=out))
    of_the_sound = ["--guidance-scale=1", "--audio-guidance-scale=5", "--negative-prompt=noise"]
    run(capsys, call(folders, "ltx2", "--guidance=cfg", *of_the_sound, out=tmp_path / "noise.mp4"))
    loaded.pop()
    (pipe,) = loaded
    output = pipe(
        "a red circle",
        **LTX2_SIZE,
        frame_rate=8,
        num_inference_steps=2,
        max_sequence_length=TEXT_LENGTH,
        guidance_scale=3,
        audio_guidance_scale=5,
        **NO_OWN_GUIDANCE,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    expected = Sound(output.audio[0], 16000)
    clip = read_manifest(out).clip
    assert clip["sha256"] == frames_sha256(to_uint8(output.frames[0]))
    assert clip["sound"] == {
        "channels": 2,
        "samples": expected.samples.shape[1],
        "rate": 16000,
        "sha256": expected.sha256,
    }
    track = read_sound(out)
    assert track.samples.shape == expected.samples.shape and track.rate == 16000
    error = (track.samples - expected.samples).norm() / expected.samples.norm()
    assert error < 0.5  # noise of random weights, which AAC does not keep well; another sound is at 1.4
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    assert f"sound    2 channels, {expected.samples.shape[1]} samples at 16000 Hz" in capsys.readouterr().out
    assert main(["reproduce", str(out)]) == 0
    assert f"identical: every frame and every sample equals those of {out}" in capsys.readouterr().out


def test_another_sound_is_not_reproduced(capsys, tmp_path, folders):
    out = tmp_path / "a.mp4"
    run(capsys, call(folders, "ltx2", "--guidance=none", "--steps=1", out=out))
    beside = tmp_path / "a.json"
    manifest = json.loads(beside.read_text())
    manifest["clip"]["sound"]["sha256"] = "0" * 64
    beside.write_text(json.dumps(manifest))
    assert main(["reproduce", str(beside), "--out", str(tmp_path / "b.mp4")]) == 1
    assert "the frames or samples differ from those of" in capsys.readouterr().err


def test_formats_without_sound_say_so(capsys, tmp_path, folders):
    arguments = call(folders, "ltx2", "--guidance=none", "--steps=1", out=tmp_path / "a.gif")
    capsys.readouterr()
    assert main(arguments) == 0
    assert "the sound is left out: gif holds none, mp4 does" in capsys.readouterr().err


def test_text_of_a_length_that_its_connectors_do_not_take(capsys, tmp_path, folders, unloadable):
    arguments = call(folders, "ltx2", "--max-sequence-length=20", out=tmp_path / "a.mp4")
    assert "ltx2: max_sequence_length must be a multiple of 8, got 20" in refused(capsys, arguments)


def test_the_probe_looks_at_the_video_of_two_streams(capsys, tmp_path, folders):
    flags = ["--guidance=oseg", "--blocks=1,3", "--queries=2", "--noise-levels=1"]
    arguments = call(folders, "ltx2", *flags, out=tmp_path / "probe")
    (found,) = run(capsys, ["probe", *arguments[1:]])
    assert found["paths"] == {"1": "transformer_blocks.1", "3": "transformer_blocks.3"}
    assert all(row["change"] > 0 for row in found["effects"])


def test_explain_names_every_branch_and_what_each_stream_gets(capsys, folders, unloadable):
    flags = ["--guidance=stg", "--blocks=3", "--audio-guidance-scale=7", "--guidance-scale=3", "--explain"]
    arguments = call(folders, "ltx2", *flags)
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    push = "+ 1 (C - P) + 2 (C - M), rescaled to std(C) by 0.7"
    assert f"rule      video: C + 2 (C - U) {push}; audio: C + 6 (C - U) {push}" in said
    assert "isolated: conditional, attention between video and audio off in block 0" in said
    assert "cost      3.40 passes a step" in said
    off = ["--guidance=cfg", "--guidance-scale=1", "--audio-guidance-scale=1", "--explain"]
    assert main(call(folders, "ltx2", *off)) == 0
    said = capsys.readouterr().out
    assert "rule      C\n" in said and "cost      1.00 passes a step" in said and "isolated" not in said


def stock(name, pipe, seed=0, **arguments):
    """SHA-256 of a clip of the stock pipeline, called by hand.

    `pipe` is the one that the job ran: how a sum is rounded follows how the weights lie in memory, so the
    same weights in other objects may give other last bits.
    """
    model = MODELS[name]
    if name == "hunyuan15":
        pipe.guider = pipe.guider.new(guidance_scale=arguments.pop("guider_scale"))
    if "scheduler" in arguments:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **arguments.pop("scheduler"))
    size = {key: value for key, value in model.size.items() if name not in IMAGES or key != "num_frames"}
    if model.flags:
        arguments["max_sequence_length"] = TEXT_LENGTH
    output = pipe(
        **size,
        **arguments,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    )
    return frames_sha256(to_uint8(output.images if name in IMAGES else output.frames[0]))


@pytest.mark.parametrize(
    ("name", "flags", "arguments"),
    [
        (
            "ltx",
            "cfg --guidance-scale=3 --negative-prompt=bad --fps=12",
            {"guidance_scale": 3, "frame_rate": 12},
        ),
        (
            "ltx-timestep-vae",
            "none --decode-timestep=0.4 --decode-noise-scale=0.3",
            {"guidance_scale": 1, "decode_timestep": 0.4, "decode_noise_scale": 0.3, "frame_rate": 8},
        ),
        (
            "ltx-condition",
            "none --decode-timestep=0.4 --timesteps=1000,725",
            {"guidance_scale": 1, "decode_timestep": 0.4, "timesteps": [1000, 725], "frame_rate": 8},
        ),
        (
            "ltx-condition-image",
            "cfg --guidance-scale=3 --negative-prompt=bad --image-cond-noise-scale=0.5 --decode-timestep=0.4",
            {"guidance_scale": 3, "image_cond_noise_scale": 0.5, "decode_timestep": 0.4, "frame_rate": 8},
        ),
        ("wan", "none", {"guidance_scale": 1}),
        ("wan", "none --flow-shift=9", {"guidance_scale": 1, "scheduler": {"flow_shift": 9}}),
        (
            "wan-experts",
            "cfg --guidance-scale=4 --negative-prompt=bad --guidance-scale-2=2",
            {"guidance_scale": 4, "guidance_scale_2": 2},
        ),
        ("cogvideox", "cfg --guidance-scale=6", {"guidance_scale": 6}),
        (
            "cogvideox",
            "cfg --guidance-scale=6 --use-dynamic-cfg",
            {"guidance_scale": 6, "use_dynamic_cfg": True},
        ),
        # The guidance-distilled mode: one branch per step.
        ("hunyuan", "none --embedded-guidance-scale=4", {"guidance_scale": 4}),
        (
            "hunyuan",
            "none --embedded-guidance-scale=4 --flow-shift=9",
            {"guidance_scale": 4, "scheduler": {"shift": 9}},
        ),
        (
            "hunyuan",
            "cfg --guidance-scale=3 --embedded-guidance-scale=2",
            {"guidance_scale": 2, "true_cfg_scale": 3, "negative_prompt": ""},
        ),
        ("hunyuan15", "cfg --guidance-scale=3", {"guider_scale": 3}),
        ("hunyuan15", "none", {"guider_scale": 1}),
        ("hunyuan15", "none --flow-shift=9", {"guider_scale": 1, "scheduler": {"shift": 9}}),
        ("sdxl", "cfg --guidance-scale=5", {"guidance_scale": 5}),
        ("sd15", "cfg --guidance-scale=5", {"guidance_scale": 5}),
        ("svd", "cfg --fps=8", {"fps": 8}),
        ("svd", "cfg --guidance-scale=2", {"min_guidance_scale": 2, "max_guidance_scale": 2, "fps": 8}),
        (
            "svd",
            "cfg --min-guidance-scale=1.5 --max-guidance-scale=2.5 --motion-bucket-id=200 "
            "--noise-aug-strength=0.1 --decode-chunk-size=2",
            {
                "min_guidance_scale": 1.5,
                "max_guidance_scale": 2.5,
                "motion_bucket_id": 200,
                "noise_aug_strength": 0.1,
                "decode_chunk_size": 2,
                "fps": 8,
            },
        ),
        ("svd", "none", {"min_guidance_scale": 1, "max_guidance_scale": 1, "fps": 8}),
    ],
)
def test_settings_reach_the_stock_pipeline(capsys, tmp_path, folders, loaded, name, flags, arguments):
    size = MODELS[name].size
    image = Image.linear_gradient("L").convert("RGB").resize((size["width"], size["height"]))
    image.save(tmp_path / "start.png")
    method, *given = flags.split()
    out = tmp_path / ("a.png" if name in IMAGES else "a.mp4")
    # SVD's recipe decodes in chunks, which its temporal decoder sees.
    chunk = ["--decode-chunk-size=3"] if name == "svd" and "decode_chunk_size" not in arguments else []
    line_flags = ["--guidance", method, *given, *chunk]
    (line,) = run(capsys, call(folders, name, *line_flags, image=tmp_path / "start.png", out=out))
    conditions = {"prompt": RED} if MODELS[name].prompt else {}
    conditions |= {"image": image} if MODELS[name].image else {}
    if "--negative-prompt=bad" in given:
        conditions["negative_prompt"] = "bad"
    (pipe,) = loaded
    assert stock(name, pipe, **conditions, **arguments) == line["sha256"]


@pytest.mark.parametrize("name", ("ltx", "wan", "wan-image", "sdxl", "mochi", "hunyuan15"))
def test_a_negative_prompt_without_an_unconditional_branch(capsys, tmp_path, folders, cat, name):
    """In one pass, or in joint attention in two rows of it."""
    made, rows = [], 2 if name in ("mochi", "hunyuan15") else 1
    for negative in ("bad", "a blue square, moving"):
        out = tmp_path / f"{len(made)}.{'png' if name in IMAGES else 'mp4'}"
        flags = ["--guidance=nag", "--guidance-scale=1", "--negative-prompt", negative]
        (line,) = run(capsys, call(folders, name, *flags, image=cat, out=out))
        made.append(line["sha256"])
        passes = [p for kind in read_manifest(out).passes["step_kinds"] for p in kind["passes"]]
        assert all(p["branches"] == ["cond"] and p["rows"] == rows and p["fired"] for p in passes)
        assert read_manifest(out).passes["block_passes"] == 2 * rows
    assert made[0] != made[1]
    assert main(["reproduce", str(out), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"]


def test_scales_that_only_a_pipeline_can_apply_are_refused_for_nag(capsys, folders, unloadable):
    flags = ["--guidance=nag", "--guidance-scale=3", "--guidance-scale-2=2"]
    message = "guidance_scale_2 has no effect with guidance nag"
    assert message in refused(capsys, call(folders, "wan-experts", *flags))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dynamic_shifting": True}, "the scheduler of this model shifts by the size of the clip"),
        ({"use_flow_sigmas": False}, "UniPCMultistepScheduler shifts no noise levels"),
    ],
)
def test_a_shift_that_the_scheduler_would_not_heed_is_refused(
    capsys, tmp_path, folders, unloadable, config, said
):
    shutil.copytree(folders("wan"), tmp_path / "m")
    path = tmp_path / "m" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    flags = ["--guidance=none", "--flow-shift=3", "--model", tmp_path / "m"]
    error = refused(capsys, call(folders, "wan", *flags, out=tmp_path / "a.mp4"))
    assert f"wan: flow_shift 3: {said}" in error


@pytest.mark.parametrize("name", ["wan", "hunyuan15"])
def test_components_that_a_clip_needs_otherwise_are_put_back(folders, name):
    own = {"flow_shift": 9.0}
    settings = {**MODELS[name].size, "steps": 2, "fps": 8.0, "dtype": "float32", "own": own}
    job = GenerateJob(
        model=str(folders(name)),
        prompts=(RED,),
        guidance=CFG(guidance_scale=3.0),
        frames=settings.pop("num_frames"),
        **settings,
    )
    model = LoadedModel(loading.find_model(job.model), job)
    before = dict(model.pipe.components)

    def unchanged() -> bool:
        return all(getattr(model.pipe, name) is component for name, component in before.items())

    with model.configured(job, RED, None) as arguments:
        assert "flow_shift" not in arguments
        config = model.pipe.scheduler.config
        assert config.get("flow_shift", config.get("shift")) == 9.0
        assert not unchanged()
    assert unchanged()
    with pytest.raises(KeyboardInterrupt), model.configured(job, RED, None):
        raise KeyboardInterrupt
    assert unchanged()


def test_settings_of_a_family_are_in_the_manifest_and_reproduced(capsys, tmp_path, folders, cat):
    own = {
        "timesteps": [1000.0, 725.0],
        "decode_timestep": 0.4,
        "decode_noise_scale": 0.3,
        "image_cond_noise_scale": 0.5,
    }
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    flags = ["--guidance=cfg", "--guidance-scale=3", "--config", tmp_path / "own.yaml"]
    (line,) = run(capsys, call(folders, "ltx-condition-image", *flags, image=cat, out=tmp_path / "a.mp4"))
    assert read_manifest(tmp_path / "a.mp4").job["own"] == own
    assert main(["reproduce", line["path"], "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"]


def test_one_scale_for_all_frames_is_a_level_ramp():
    """Also where the guidance's own scale would do: the pipeline is called as the job says."""
    arguments = adapter_for_class("StableVideoDiffusionPipeline").pipeline_arguments({"guidance_scale": 2.0})
    assert arguments == {"min_guidance_scale": 2.0, "max_guidance_scale": 2.0}


def test_a_schedule_turns_the_second_branch_on(capsys, tmp_path, folders):
    """Of a scale by noise level the pipeline learns only whether it is ever above 1."""
    flags = ["--guidance=cfg", "--guidance-scale=1.0:1,0.99:4"]
    (line,) = run(capsys, call(folders, "hunyuan", *flags, "--steps=3", out=tmp_path / "a.mp4"))
    kinds = read_manifest(Path(line["path"])).passes["step_kinds"]
    assert {len(kind["passes"]) for kind in kinds} == {1, 2}
    flags = ["--guidance=cfg", "--guidance-scale=1.0:1,0.5:1", "--negative-prompt=x"]
    assert "negative_prompt has no effect" in refused(
        capsys, call(folders, "hunyuan", *flags, out=tmp_path / "b.mp4")
    )


REFUSED = {
    "svd": {
        "--prompt=x": "svd takes no text, got prompt 'x'; leave it out, or use a model of cogvideox",
        "--negative-prompt=x": "negative_prompt has no effect with svd; it belongs to cogvideox",
        "--max-sequence-length=9": "max_sequence_length has no effect with svd",
        "--vae-tiling": "vae_tiling: the VAE of svd cannot decode in tiles; those of cogvideox",
        "--guidance-scale=2 --max-guidance-scale=3": (
            "svd: guidance_scale 2 is one scale for all frames; it cannot go with max_guidance_scale"
        ),
        "--min-guidance-scale=4": "min_guidance_scale 4 must not be above max_guidance_scale 3",
        "--max-guidance-scale=0.5": "--max-guidance-scale must be from 1 to 1000, got 0.5",
        "--max-guidance-scale=2 --guidance=none": "max_guidance_scale has no effect with guidance none",
        "--motion-bucket-id=256": "--motion-bucket-id must be from 0 to 255, got 256",
    },
    "mochi": {
        "--embedded-guidance-scale=6": "embedded_guidance_scale has no effect with mochi; it belongs to",
    },
    "ltx": {
        "--decode-timestep=0.05": "decode_timestep 0.05: the VAE of this model decodes without a timestep",
        "--decode-noise-scale=0.1": "decode_noise_scale 0.1: the VAE of this model decodes without",
        "--decode-timestep=2": "--decode-timestep must be from 0 to 1, got 2",
        "--timesteps=1000,500": (
            "timesteps is for models of LTXConditionPipeline (0.9.5 and later); this one is of LTXPipeline"
        ),
        "--image-cond-noise-scale=0.1": "image_cond_noise_scale has no effect without an image; give one",
        "--flow-shift=3": "flow_shift has no effect with ltx; it belongs to hunyuan, hunyuan15, wan",
        "--motion-bucket-id=6": "motion_bucket_id has no effect with ltx; it belongs to svd",
        "--prompt=": "a prompt must not be empty",
    },
    "ltx-image": {
        "--image-cond-noise-scale=0.1": (
            "image_cond_noise_scale is for models of LTXConditionPipeline (0.9.5 and later); this one is of "
            "LTXImageToVideoPipeline"
        ),
    },
    "ltx-condition": {
        "--timesteps=1000,725,500": "timesteps has 3 of them, where steps is 2",
        "--timesteps=500,1000": "timesteps must fall from each to the next, got [500.0, 1000.0]",
        "--timesteps=1000,x": "--timesteps must be a number, got 'x'",
        "--timesteps=1001,3": "--timesteps must be from 0 to 1000, got 1001",
    },
    "hunyuan15": {
        "--max-sequence-length=9": "max_sequence_length has no effect with hunyuan15; it belongs",
    },
    "hunyuan": {
        "--negative-prompt=x --config={tmp}/distilled.yaml": (
            "negative_prompt has no effect without text guidance; guidance_scale is 1, not above 1"
        ),
    },
    "wan": {
        "--guidance-scale-2=2": "wan: guidance_scale_2 2: this model has one expert",
        "--image={cat}": "makes clips from text only; for --image use weights of a WanImageToVideoPipeline",
        "--flow-shift=0": "--flow-shift must be between 0 and 1000, got 0",
        "--flow-shift=x": "--flow-shift must be a number, got 'x'",
        "--frames=8": "frames 8: wan makes 4 k + 1 frames; nearest: 5 or 9",
    },
    "wan-experts": {
        "--guidance-scale=1 --guidance-scale-2=2": "give a guidance_scale above 1",
        "--guidance-scale=1.0:4,0.5:2 --guidance-scale-2=2": (
            "guidance_scale_2 cannot go with a guidance_scale by noise level"
        ),
        "--guidance=none --guidance-scale-2=2": "guidance_scale_2 has no effect with guidance none",
    },
    "wan-image": {
        "--max-sequence-length=99": "max_sequence_length 99: image to video with this model takes 512",
    },
    "wan-5b": {
        "--height=80": "height 80: wan needs a multiple of 32 pixels; nearest: 64 or 96",
    },
    "hunyuan15-image": {
        "--height=96": "height 96 and width 48: image to video with this model has a list of sizes; nearest",
    },
    "cogvideox-image": {
        "--height=64": "64: this model has learned its positions and makes height 48 and width 64 only",
    },
    "cogvideox": {
        "--use-dynamic-cfg --guidance=none": "use_dynamic_cfg has no effect with guidance none",
        "--max-sequence-length=9": "max_sequence_length 9: this model takes 24 only",
    },
    "sdxl": {
        "--frames=2": "frames 2: sdxl makes one image; frames must be 1",
        "--fps=8": "fps 8 has no effect with sdxl, which makes images",
        "--format=gif": "format gif: sdxl makes images; format must be png",
        "--out=a.mp4": "cannot write .mp4 files of images; use .png or a folder",
        "--image={cat}": "sdxl makes images from text only; --image works with cogvideox",
    },
}
"""By model, flags and what is said of them."""


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [(name, *one) for name, refusals in REFUSED.items() for one in refusals.items()],
)
def test_what_a_family_lacks_is_refused(capsys, tmp_path, folders, cat, unloadable, name, flags, message):
    (tmp_path / "distilled.yaml").write_text("guidance_scale: null\nguidance: cfg\n")
    method = [] if "--guidance=" in flags or "--config" in flags else ["--guidance=cfg"]
    given = [flag.format(cat=cat, tmp=tmp_path) for flag in flags.split(" ")]
    arguments = call(folders, name, "--out", tmp_path / "out", *method, *given, image=cat)
    assert message in refused(capsys, arguments)
    if not flags.startswith("--out"):
        assert message in refused(capsys, [*arguments, "--explain"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_explained_without_its_weights(capsys, folders, cat, unloadable, name):
    flags = ["--guidance=oseg", f"--blocks={MODELS[name].block}", "--explain"]
    assert main(call(folders, name, *flags, image=cat)) == 0
    text = capsys.readouterr().out
    adapter = loading.find_model(str(folders(name))).adapter
    assert re.match(rf"model      {folders(name)} \({adapter.family}, \d+ blocks\)\n", text)
    # HunyuanVideo's text guidance is an input of the network, so that there is one condition only.
    conditions = ["cond"] if adapter.family == "hunyuan" else ["uncond", "cond"]
    assert re.findall(r"branch    (\w+)_perturbed:", text) == conditions


def test_the_scale_of_a_guider_is_read_from_the_model(capsys, tmp_path, folders, unloadable):
    shutil.copytree(folders("hunyuan15"), tmp_path / "m")
    path = tmp_path / "m" / "guider" / "guider_config.json"
    config = json.loads(path.read_text())
    (tmp_path / "own.yaml").write_text("guidance: stg\nguidance_scale: null\nblocks: [1]\nstg_scale: 1\n")
    flags = ["--config", tmp_path / "own.yaml", "--model", tmp_path / "m", "--explain"]
    arguments = call(folders, "hunyuan15", *flags)
    for change, text in (
        ({"guidance_scale": 3.5}, "C + 2.5 (C - U)"),
        ({"guidance_scale": 3.5, "use_original_formulation": True}, "C + 3.5 (C - U)"),
        ({"enabled": False}, "C + 1 (C - P)"),
    ):
        path.write_text(json.dumps(config | change))
        capsys.readouterr()
        assert main(arguments) == 0
        assert f"rule      {text}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["svd", "wan-image", "hunyuan-image", "cogvideox-image"])
def test_weights_for_images_need_one(capsys, tmp_path, folders, unloadable, name):
    arguments = call(folders, name, *PROMPT[: 2 * (name != "svd")], image="x", out=tmp_path / "a.mp4")
    at = arguments.index("--image")
    error = refused(capsys, [*arguments[:at], *arguments[at + 2 :], "--out", str(tmp_path / "clips")])
    assert "makes clips from an image; give it one with --image" in error


def test_a_prompt_is_needed_where_text_is(capsys, tmp_path, folders, unloadable):
    arguments = call(folders, "ltx", out=tmp_path / "a.mp4")
    at = arguments.index("--prompt")
    assert "no prompt given" in refused(capsys, arguments[:at] + arguments[at + 2 :])


def test_pipelines_that_take_a_video_are_refused(capsys, tmp_path, folders, unloadable):
    (tmp_path / "v2v").mkdir()
    index = json.loads((folders("wan") / "model_index.json").read_text())
    index["_class_name"] = WanVideoToVideoPipeline.__name__
    (tmp_path / "v2v" / "model_index.json").write_text(json.dumps(index))
    arguments = call(folders, "wan", "--model", tmp_path / "v2v", out=tmp_path / "a.mp4")
    assert "generate cannot run a WanVideoToVideoPipeline; it runs WanPipeline, WanImage" in refused(
        capsys, arguments
    )


def test_an_image_is_a_png_that_knows_how_it_was_made(capsys, tmp_path, folders):
    cfg = ["--guidance=cfg", "--guidance-scale=3"]
    (line,) = run(capsys, call(folders, "sdxl", *cfg, out=tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (SDXL_SIZE["width"], SDXL_SIZE["height"])
        pixels_HWC = torch.from_numpy(np.array(image))
    assert frames_sha256(pixels_HWC.permute(2, 0, 1)[None].contiguous()) == line["sha256"]
    (tmp_path / "a.json").rename(tmp_path / "elsewhere.json")
    assert read_manifest(tmp_path / "a.png").clip["sha256"] == line["sha256"]
    assert main(["reproduce", str(tmp_path / "elsewhere.json"), "--quiet"]) == 0
    capsys.readouterr()
    assert (tmp_path / "elsewhere-reproduced.png").is_file()
    assert "exists already" in refused(capsys, call(folders, "sdxl", *cfg, out=tmp_path / "a.png"))


PERTURBED = [name for name, method in METHODS.items() if issubclass(method, BlockGuidance)]


def without_prompt(folders, name, *flags, out):
    """Arguments of `generate` with the empty prompt in place of another."""
    arguments = call(folders, name, *flags, out=out)
    arguments[arguments.index("--prompt") + 1] = ""
    return arguments


# OSEG as released is for two families of video, and S2-Guidance has recipes for transformers only.
@pytest.mark.parametrize("method", [name for name in PERTURBED if name not in ("oseg-released", "s2")])
@pytest.mark.parametrize("name", IMAGES)
def test_without_a_prompt_no_text_guides(capsys, tmp_path, folders, name, method):
    """The recipes of these methods have a guidance scale; of the formula only the push is left."""
    arguments = without_prompt(folders, name, f"--guidance={method}", out=tmp_path / "a")
    (line,) = run(capsys, arguments)
    assert line["prompt"] == "" and Path(line["path"]).name == f"clip-{method}-seed0.png"
    manifest = read_manifest(Path(line["path"]))
    assert manifest.job["guidance"]["guidance_scale"] == 1
    (kind,) = manifest.passes["step_kinds"]
    plain, perturbed = kind["passes"]
    assert plain["branches"] == ["cond"] and plain["rows"] == perturbed["rows"] == 1
    assert main([*arguments, "--explain", "--out", str(tmp_path / "b")]) == 0
    assert re.search(r"rule      C \+ [\d.]+ \(C - (P|C~)\)\n", capsys.readouterr().out)
    assert main(["reproduce", line["path"], "--quiet"]) == 0


def test_a_scale_of_text_without_a_text_is_refused(capsys, tmp_path, folders, unloadable):
    out, cfg = tmp_path / "a", "--guidance=cfg"
    scaled = without_prompt(folders, "sdxl", cfg, "--guidance-scale=3", out=out)
    assert "guidance_scale 3: an empty prompt is no text to guide by; leave it out" in refused(capsys, scaled)
    mixed = call(folders, "sdxl", cfg, "--guidance-scale=3", "--prompt", "", out=out)
    assert "some prompts are empty, where nothing guides by text, and others are not" in refused(
        capsys, mixed
    )


def test_what_to_move_away_from_is_a_text_to_guide_by(capsys, tmp_path, folders):
    flags = ["--guidance=cfg", "--guidance-scale=3", "--negative-prompt", "a blue square"]
    (line,) = run(capsys, without_prompt(folders, "sdxl", *flags, out=tmp_path / "a"))
    (kind,) = read_manifest(Path(line["path"])).passes["step_kinds"]
    assert kind["passes"][0]["branches"] == ["uncond", "cond"]


def test_clips_without_a_prompt_are_named_after_their_image(capsys, tmp_path, folders, cat):
    flags = ["--guidance=cfg", "--seed", "1", "2"]
    lines = run(capsys, call(folders, "svd", *flags, image=cat, out=tmp_path / "clips"))
    assert [Path(line["path"]).name for line in lines] == ["cat-cfg-seed1.mp4", "cat-cfg-seed2.mp4"]
    assert [line["prompt"] for line in lines] == [None, None]
    assert read_manifest(Path(lines[0]["path"])).job["prompts"] == []


def test_the_note_says_what_was_done_to_the_image(capsys, tmp_path, folders, cat):
    arguments = call(folders, "svd", "--guidance=cfg", image=cat, out=tmp_path / "a.mp4")
    assert main(arguments) == 0
    assert "cat.png: 100 x 50 resized to 128 x 64, centre-cropped to 96 x 64" in capsys.readouterr().err


@pytest.mark.parametrize("adapter", list(all_adapters()), ids=lambda adapter: adapter.family)
def test_a_family_name_stands_for_a_repository_of_each_kind(monkeypatch, tmp_path, adapter):
    asked = []

    def fetch_file(repository, commit, name):
        asked.append(repository)
        wanted = adapter.image_to_video if repository == adapter.image_repository else adapter.pipelines[0]
        (tmp_path / name).write_text(json.dumps({"_class_name": wanted}))
        return tmp_path / name

    monkeypatch.setattr(hub, "find_commit", lambda repository, revision: "c0ffee")
    monkeypatch.setattr(hub, "fetch_file", fetch_file)
    if adapter.text_to_video:
        assert loading.find_model(adapter.family).pipeline_for(image=False) == adapter.text_to_video
    if adapter.image_to_video:
        source = loading.find_model(adapter.family, image=True)
        assert source.pipeline_for(image=True) == adapter.image_to_video
        assert asked[-1] == (adapter.image_repository or adapter.hub_repository)
    assert loading.recipe_of(adapter.family) == adapter.family and len(asked) <= 2


DTYPES = {
    "wan-image": {"vae": "float32", "image_encoder": "float32"},
    "hunyuan": {"vae": "float16", "text_encoder": "float16", "text_encoder_2": "float16"},
    "ltx": {},
}


@pytest.mark.parametrize("name", DTYPES)
def test_components_in_their_number_types_from_a_variant(capsys, tmp_path, folders, cat, loaded, name):
    MODELS[name].build().to(torch.bfloat16).save_pretrained(tmp_path / "m", variant="bf16")
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    adapter = adapter_for_class(index["_class_name"])
    weights = loading.component_weights(tmp_path / "m", "bf16", torch.bfloat16, adapter)
    assert all(".bf16." in file.name for one in weights.values() for file in one.files)
    flags = ["--model", tmp_path / "m", "--dtype=bfloat16", "--variant=bf16", "--guidance=cfg"]
    (line,) = run(capsys, call(folders, name, *flags, image=cat, out=tmp_path / "a.mp4"))
    assert read_manifest(Path(line["path"])).job["dtype"] == "bfloat16"
    for component, one in weights.items():
        module = getattr(loaded[0], component)
        expected = getattr(torch, DTYPES[name].get(component, "bfloat16"))
        assert one.dtype == expected
        kept = getattr(module, "_keep_in_fp32_modules", None) or () if component == "transformer" else ()
        for parameter, value in module.named_parameters():
            own = torch.float32 if set(parameter.split(".")) & set(kept) else expected
            assert value.dtype == own, parameter
        size = sum(p.numel() * p.itemsize for p in module.parameters())
        assert one.bytes == pytest.approx(size, rel=0.02)
    assert main(["reproduce", line["path"], "--quiet"]) == 0


def test_modules_that_stay_in_float32_count():
    """T5's output projections stay in float32 where it is loaded in float16, as transformers has it."""
    entry = ["transformers", "T5EncoderModel"]
    assert "wo" in loading._float32_modules(entry, torch.float16)
    assert "wo" not in loading._float32_modules(entry, torch.bfloat16)
    assert "time_embedder" in loading._float32_modules(["diffusers", "WanTransformer3DModel"], torch.bfloat16)
    assert loading._float32_modules(["nowhere", "Nothing"], torch.float16) == ()


@pytest.mark.parametrize("name", ["svd", "sdxl", "wan", "hunyuan", "hunyuan15", "cogvideox", "ltx"])
def test_the_fewest_steps_that_are_allowed_run(capsys, tmp_path, folders, cat, name):
    out = tmp_path / ("a.png" if name in IMAGES else "a.mp4")
    run(capsys, call(folders, name, "--guidance=cfg", "--steps=1", image=cat, out=out))


def test_a_single_frame_clip(capsys, tmp_path, folders):
    for name in ("ltx", "wan", "hunyuan", "cogvideox"):
        (line,) = run(
            capsys, call(folders, name, "--guidance=cfg", "--frames=1", out=tmp_path / f"{name}.mp4")
        )
        assert len(read_clip(Path(line["path"])).frames) == 1
