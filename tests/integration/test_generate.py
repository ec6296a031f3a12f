"""generate and reproduce through the command line, on tiny pipelines of the real diffusers classes."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import errors
from PIL import Image

from oseg_video import console
from oseg_video.adapters.mochi import MochiAdapter
from oseg_video.cli import main
from oseg_video.config.manifest import read_manifest
from oseg_video.jobs.counted import count_job
from oseg_video.jobs.loading import device as device_module
from oseg_video.jobs.loading import hub, memory
from oseg_video.jobs.loading import pipeline as loading
from oseg_video.media import frames_sha256, read_clip, to_uint8, writing
from tests.processes import Command
from tests.tiny import LTX_SIZE, MOCHI_SIZE, TEXT_LENGTH, LTXConditionPipeline, tiny_ltx, tiny_mochi


def as_flags(size):
    return [f"--{name.removeprefix('num_')}={value}" for name, value in size.items()]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny pipelines by name."""
    folder = tmp_path_factory.mktemp("models")
    pipes = {"mochi": tiny_mochi(), "ltx": tiny_ltx(), "ltx-condition": tiny_ltx(LTXConditionPipeline)}
    for name, pipe in pipes.items():
        pipe.save_pretrained(folder / name)
    return folder


@pytest.fixture
def mochi(models):
    """Flags of a job that takes a second: what to run, without prompt and output."""
    flags = ["--model", str(models / "mochi"), *as_flags(MOCHI_SIZE), "--steps=2", "--blocks=2"]
    return [*flags, f"--max-sequence-length={TEXT_LENGTH}", "--dtype=float32", "--no-vae-tiling"]


@pytest.fixture
def ltx(models):
    flags = ["--model", str(models / "ltx"), *as_flags(LTX_SIZE), "--steps=2", "--blocks=2"]
    return [*flags, f"--max-sequence-length={TEXT_LENGTH}", "--dtype=float32"]


def generate(capsys, *arguments):
    """Standard output of a `generate` that must succeed, as one JSON object a clip."""
    code = main(["generate", *map(str, arguments), "--quiet", "--json"])
    output = capsys.readouterr()
    assert code == 0, output.err
    assert output.err == ""
    return [json.loads(line) for line in output.out.splitlines()]


def refused(capsys, *arguments):
    """Standard error of a command that must end with exit code 2 and one line, the model unloaded."""
    assert main([*map(str, arguments), "--quiet"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"oseg-video: error: [^\n]+\n", output.err), output.err
    return output.err


@pytest.fixture
def unloadable(monkeypatch):
    """Loading weights fails the test: what is refused must be refused before."""

    def load(*_, **__):
        pytest.fail("the model was loaded")

    monkeypatch.setattr(loading, "load_pipeline", load)


def test_one_clip_with_its_manifest(capsys, tmp_path, mochi):
    out = tmp_path / "new" / "a.mp4"
    (line,) = generate(capsys, *mochi, "--prompt", "a red circle", "--seed", 7, "--fps", 8, "--out", out)
    assert line["path"] == str(out) and line["seed"] == 7 and line["seconds"] > 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["a.json", "a.mp4"]
    clip = read_clip(out)
    assert list(clip.frames.shape) == [13, 3, 48, 32] and clip.fps == pytest.approx(8)
    assert 10 < clip.frames.float().std()  # an image, not a flat colour

    manifest = json.loads((tmp_path / "new" / "a.json").read_text())
    assert manifest == read_manifest(out).plain()  # the same inside the mp4
    assert manifest["clip"]["sha256"] == line["sha256"]
    assert (manifest["job"]["prompts"], manifest["job"]["seeds"]) == (["a red circle"], [7])
    assert manifest["job"]["guidance"]["method"] == "oseg" and manifest["job"]["guidance"]["blocks"] == [2]
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["passes"]["steps"] == 2
    fired = {name for kind in manifest["passes"]["step_kinds"] for p in kind["passes"] for name in p["fired"]}
    assert fired == {"transformer_blocks.2.attn1"}
    assert not any(str(tmp_path) in str(manifest[key]) for key in manifest if key != "job")


@pytest.mark.parametrize("format", ["mp4", "gif", "png"])
def test_reproduce_gives_equal_frames(capsys, tmp_path, mochi, format):
    (line,) = generate(
        capsys, *mochi, "--prompt", "a red circle", "--seed", 3, "--out", tmp_path / f"a.{format}"
    )
    assert main(["reproduce", line["path"], "--quiet", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["identical"] and again["differences"] == [] and again["sha256"] == line["sha256"]
    first, second = read_clip(Path(line["path"])), read_clip(Path(again["path"]))
    assert "reproduced" in again["path"] and torch.equal(first.frames, second.frames)
    if format == "png":  # lossless: the hash is that of the generated frames
        assert frames_sha256(first.frames) == line["sha256"]


def test_reuse_is_in_the_manifest_and_is_reproduced(capsys, tmp_path, mochi):
    reuse = ("--steps", 6, "--refresh", "uncond=2,perturbed=3", "--cache", 0.35)
    (line,) = generate(capsys, *mochi, "--prompt", "a red circle", "--out", tmp_path / "a.mp4", *reuse)
    manifest = read_manifest(tmp_path / "a.mp4")
    assert manifest.job["reuse"] == {"refresh": {"uncond": 2, "perturbed": 3}, "cache": 0.35}
    kinds = manifest.passes["step_kinds"]
    assert [] in [kind["estimated"] for kind in kinds] and any("cond" in kind["estimated"] for kind in kinds)
    fewest, most = count_job(manifest.read_job()).passes
    assert fewest <= manifest.passes["block_passes"] < most
    assert main(["reproduce", line["path"], "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"]


def test_reproduce_from_the_manifest_alone_and_what_differs(capsys, tmp_path, mochi):
    generate(capsys, *mochi, "--prompt", "a red circle", "--out", tmp_path / "a.mp4")
    (tmp_path / "a.mp4").unlink()
    path = tmp_path / "a.json"
    manifest = json.loads(path.read_text())
    manifest["job"]["seeds"] = [1]
    manifest["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    assert main(["reproduce", str(path), "--quiet", "--out", str(tmp_path / "b.mp4")]) == 1
    error = capsys.readouterr().err
    assert "the frames differ" in error and f"1 differences: torch 1.0 -> {torch.__version__}" in error
    assert "exists already" in refused(capsys, "reproduce", path, "--out", tmp_path / "b.mp4")


def test_an_old_manifest_still_reproduces(capsys, tmp_path, mochi):
    """Manifests from before a setting existed leave it out."""
    (line,) = generate(capsys, *mochi, "--prompt", "a red circle", "--out", tmp_path / "a.mp4")
    path = tmp_path / "a.json"
    manifest = json.loads(path.read_text())
    assert manifest["job"].pop("reuse") == {"refresh": {}, "cache": 0.0}
    assert manifest["job"].pop("own") == {} and manifest["job"].pop("negative_prompt") is None
    assert manifest["job"]["guidance"].pop("reference") == "token"
    path.write_text(json.dumps(manifest))
    assert main(["reproduce", str(path), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == line["sha256"]


def test_a_clip_does_not_depend_on_its_neighbours(capsys, tmp_path, mochi):
    many = generate(
        capsys, *mochi, "--prompt", "a", "--prompt", "b", "--seed", 1, 2, "--out", tmp_path / "many"
    )
    torch.manual_seed(99)  # nor on the global random state
    (one,) = generate(capsys, *mochi, "--prompt", "b", "--seed", 1, "--out", tmp_path / "one")
    hashes = {(line["prompt"], line["seed"]): line["sha256"] for line in many}
    assert list(hashes) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert len(set(hashes.values())) == 4
    assert one["sha256"] == hashes["b", 1]
    assert Path(one["path"]).name == Path(many[2]["path"]).name


def test_every_method_and_none_makes_another_clip(capsys, tmp_path, models, monkeypatch):
    pipes, original = [], loading.load_pipeline
    monkeypatch.setattr(
        loading, "load_pipeline", lambda *args, **named: pipes.append(original(*args, **named)) or pipes[-1]
    )
    flags = [*as_flags(MOCHI_SIZE), "--steps=2", f"--max-sequence-length={TEXT_LENGTH}", "--dtype=float32"]
    flags += ["--model", str(models / "mochi"), "--prompt", "a red circle", "--out", str(tmp_path)]
    hashes = {}
    for method in ("none", "cfg", "seg", "stg", "oseg"):
        blocks = ["--blocks=1,3"] if method in ("seg", "stg", "oseg") else []
        (line,) = generate(capsys, *flags, "--guidance", method, *blocks)
        hashes[method] = line["sha256"]
    assert len(set(hashes.values())) == 5
    # "none" is the stock pipeline at scale 1: the same object, as others may round differently.
    stock = pipes[0](
        "a red circle",
        **MOCHI_SIZE,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=TEXT_LENGTH,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    assert frames_sha256(to_uint8(stock.frames[0])) == hashes["none"]


@pytest.mark.parametrize("model", ["ltx", "ltx-condition"])
def test_image_to_video(capsys, tmp_path, ltx, models, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (40, 100, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "start.png")
    flags = [*ltx, "--model", models / model, "--prompt", "waves", "--out"]
    (plain,) = generate(capsys, *flags, tmp_path / "plain.mp4")
    (moving,) = generate(capsys, *flags, tmp_path / "image.mp4", "--image", "start.png")
    assert plain["sha256"] != moving["sha256"]
    manifest = read_manifest(tmp_path / "image.mp4")
    names = {"ltx": "LTXImageToVideoPipeline", "ltx-condition": "LTXConditionPipeline"}
    assert manifest.model["pipeline"] == names[model]
    assert manifest.image["fitted"] == "100 x 40 resized to 80 x 32, centre-cropped to 64 x 32"
    monkeypatch.chdir(tmp_path.parent)  # the image lies beside the clip
    assert main(["reproduce", str(tmp_path / moving["path"]), "--quiet"]) == 0


@pytest.mark.parametrize(
    "prompt",
    ["🎈🎈", "../../../etc/passwd", "-rf *", "赤い円", "a\nb\tc", "=;#\\ \"quoted\" 'x'", "long " * 400],
)
def test_odd_prompts(capsys, tmp_path, mochi, prompt):
    (line,) = generate(capsys, *mochi, f"--prompt={prompt}", "--out", tmp_path / "clips")
    path = Path(line["path"])
    assert path.parent == tmp_path / "clips" and len(list(path.parent.iterdir())) == 2
    assert read_manifest(path).prompt == prompt


def test_the_final_line_and_the_bars(capsys, tmp_path, mochi, monkeypatch):
    monkeypatch.setattr(console, "_is_terminal", lambda stream: True)
    assert main(["generate", *mochi, "--prompt", "word " * 20, "--out", str(tmp_path / "a.mp4")]) == 0
    output = capsys.readouterr()
    assert re.fullmatch(r"\S+a\.mp4  [\d.]+ s  [\d.]+ s/step\n", output.out)
    for bar in ("Loading pipeline components", "2/2", "decoding", f"only the first {TEXT_LENGTH} count"):
        assert bar in output.err


def test_info_prints_the_manifest_and_a_config(capsys, tmp_path, mochi):
    (line,) = generate(capsys, *mochi, "--prompt", "a red circle", "--seed", 5, "--out", tmp_path / "a.mp4")
    assert main(["info", line["path"], "--json"]) == 0
    assert capsys.readouterr().out == (tmp_path / "a.json").read_text()
    assert main(["info", line["path"]]) == 0
    summary = dict(re.fullmatch(r"(\w+) +(.*)", one).groups() for one in capsys.readouterr().out.splitlines())
    assert (summary["prompt"], summary["seed"], summary["method"]) == ("a red circle", "5", "oseg")
    assert summary["clip"].startswith(f"{MOCHI_SIZE['num_frames']} frames of {MOCHI_SIZE['height']} x ")
    assert re.search(r"\bsteps 2\b", summary["settings"]) and "None" not in str(summary)
    assert main(["info", line["path"], "--yaml"]) == 0
    (tmp_path / "a.yaml").write_text(capsys.readouterr().out)
    (again,) = generate(capsys, "--config", tmp_path / "a.yaml", "--out", tmp_path / "b.mp4")
    assert again["sha256"] == line["sha256"]


def test_a_manifest_of_others_says_nothing_to_the_terminal(capsys, tmp_path, mochi):
    generate(capsys, *mochi, "--prompt", "a red circle", "--out", tmp_path / "a.mp4")
    manifest = tmp_path / "a.json"
    evil = manifest.read_text().replace("a red circle", "a \x9b31m\u202e circle\\u001b[2J")
    manifest.write_text(evil)
    for flags in ((), ("--json",), ("--yaml",)):
        assert main(["info", str(manifest), *flags]) == 0
        said = capsys.readouterr().out
        assert "circle" in said and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)
        assert "--json" not in flags or json.loads(said) == json.loads(evil)


def test_a_config_file_sets_and_flags_win(capsys, tmp_path, mochi):
    (tmp_path / "mine.yaml").write_text("guidance: stg\nstg_scale: 0.5\nsteps: 9\nprompts: from the file\n")
    (line,) = generate(capsys, *mochi, "--config", tmp_path / "mine.yaml", "--out", tmp_path / "a.mp4")
    settings = read_manifest(Path(line["path"])).settings
    assert (settings["guidance"], settings["stg_scale"], settings["steps"]) == ("stg", 0.5, 2)
    assert line["prompt"] == "from the file"


def test_what_the_model_cannot_make_is_refused(capsys, tmp_path, mochi, ltx, unloadable):
    call = ["generate", *mochi, "--prompt", "x", "--out", tmp_path / "a.mp4"]
    for flags, message in [
        (["--frames=20"], "frames 20: mochi makes 6 k + 1 frames; nearest: 19 or 25"),
        (["--height=100"], "height 100: mochi needs a multiple of 16 pixels; nearest: 96 or 112"),
        (["--width=5"], "width 5: mochi needs a multiple of 16 pixels; nearest: 16"),
        (["--blocks=9"], "no block 9: this mochi model has 5 blocks, 0 to 4"),
        (["--mix=2"], "mix must be"),
        (["--interval=0.9,0.1"], "interval"),
        (
            ["--guidance=cfg"],
            "blocks has no effect with guidance cfg; it belongs to oseg, oseg-re",
        ),
        (
            ["--guidance-scale=1", "--negative-prompt=y"],
            "negative_prompt has no effect without text guidance",
        ),
        ([f"--image={__file__}"], "mochi makes clips from text only; --image works with cogvideox"),
        (["--model=mochy"], "did you mean 'mochi'?"),
        (["--model", tmp_path], "is not a pipeline directory: it has no model_index.json"),
    ]:
        assert message in refused(capsys, *call, *flags)
    call = ["generate", *ltx, "--prompt", "x", "--out", tmp_path / "a.mp4"]
    assert "frames 10: ltx makes 8 k + 1 frames; nearest: 9 or 17" in refused(capsys, *call, "--frames=10")
    assert "No such file" in refused(capsys, *call, "--image=nothing.png")
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_checked_before_loading(capsys, tmp_path, mochi, unloadable):
    call = ["generate", *mochi, "--prompt", "x", "--out"]
    (tmp_path / "a.mp4").write_text("mine")
    assert "exists already; --overwrite replaces it" in refused(capsys, *call, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_text() == "mine"
    assert "cannot write" in refused(capsys, *call, tmp_path / "a.mp4" / "b.mp4")
    assert "2 clips do not fit" in refused(capsys, *call, tmp_path / "b.mp4", "--seed", 1, 2)


def test_overwrite(capsys, tmp_path, mochi):
    call = [*mochi, "--out", tmp_path / "a.mp4", "--overwrite", "--prompt"]
    for prompt in ("w", "x"):
        generate(capsys, *call, prompt)
        assert read_manifest(tmp_path / "a.mp4").prompt == prompt
    (tmp_path / "a.mp4").write_text("a film of my own")
    error = refused(capsys, "generate", *call, "x")
    assert "a.mp4 is in the way and was not made by oseg-video" in error
    assert (tmp_path / "a.mp4").read_text() == "a film of my own"


def test_models_that_cannot_be_loaded(capsys, tmp_path, mochi, models):
    def call(folder, *flags):
        return refused(
            capsys,
            "generate",
            *mochi,
            "--model",
            folder,
            "--prompt",
            "x",
            "--out",
            tmp_path / "o.mp4",
            *flags,
        )

    shutil.copytree(models / "mochi", tmp_path / "m")
    weights = tmp_path / "m" / "transformer" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1000])
    assert "cannot load" in call(tmp_path / "m")
    weights.write_bytes(b"garbage")
    assert "damaged weights" in call(tmp_path / "m")
    weights.unlink()
    assert re.search(r"missing weights: \S+transformer has no \.safetensors file", call(tmp_path / "m"))
    index = tmp_path / "m" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert "no adapter for 'FluxPipeline'; supported pipelines: Cog" in call(tmp_path / "m")
    index.write_text("{")
    assert "is not valid JSON" in call(tmp_path / "m")
    assert "nothing to offload to" in call(models / "mochi", "--offload=model", "--device=cpu")
    assert "no such device" in call(models / "mochi", "--device=abacus")
    if not torch.cuda.is_available():
        assert "this machine has cpu" in call(models / "mochi", "--device=cuda")


@pytest.mark.parametrize(
    ("entry", "config"),
    [
        (["evil_mod", "X"], {}),
        (["evil_mod"], {}),
        (["os.path", "join"], {}),
        ([["evil_mod"], "X"], {}),
        (["transformers", "AutoModel"], {"auto_map": {"AutoModel": "evil_mod.X"}}),
        (["transformers", "T5EncoderModel"], {"attn_implementation": "evil/mod"}),
        (["transformers", "T5EncoderModel"], {"text_config": {"_attn_implementation": "evil/mod"}}),
    ],
)
def test_a_model_does_not_choose_what_is_run(capsys, tmp_path, monkeypatch, mochi, models, entry, config):
    shutil.copytree(models / "mochi", tmp_path / "m")
    for file, changes in (
        (tmp_path / "m" / "model_index.json", {"text_encoder": entry}),
        (tmp_path / "m" / "text_encoder" / "config.json", config),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    for folder in (tmp_path, tmp_path / "m" / "text_encoder"):
        (folder / "evil_mod.py").write_text("raise SystemExit('code of the model has run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, "generate", *mochi, "--model", "m", "--prompt", "x", "--out", "o.mp4")
    assert re.search("would run code (of the model|from the hub)", error)
    assert "evil_mod" not in sys.modules


def test_memory_is_estimated_before_loading(capsys, tmp_path, mochi, monkeypatch):
    tiny = tiny_mochi()
    for dtype in (torch.float32, torch.bfloat16):
        weights = loading.component_weights(Path(mochi[1]), None, dtype, MochiAdapter())
        for name in ("transformer", "vae"):
            expected = sum(p.numel() for p in getattr(tiny, name).parameters()) * dtype.itemsize
            assert weights[name].bytes == pytest.approx(expected, rel=0.01)
    monkeypatch.setattr(memory, "available_memory", lambda device: 1 << 20)
    error = refused(capsys, "generate", *mochi, "--prompt", "x", "--out", tmp_path / "a.mp4")
    assert re.search(r"needs about 0\.0 GiB of memory .* in float32, 0\.0 GiB is free; no --dtype", error)


def test_a_hub_out_of_reach_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = refused(capsys, "generate", "--model", "mochi", "--prompt", "x", "--out", tmp_path / "a.mp4")
    assert "cannot reach the hub for genmo/mochi-1-preview" in error and "--model the path" in error


def hub_error(kind, status):
    """An answer of the hub as its client raises it."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error.\nCannot access", response=response)


@pytest.mark.parametrize(
    ("kind", "status"),
    [(errors.GatedRepoError, 403), (errors.HfHubHTTPError, 401), (errors.HfHubHTTPError, 403)],
)
@pytest.mark.parametrize("asked", ["model_info", "hf_hub_download", "download"])
def test_a_repository_that_asks_for_permission_says_what_to_do(
    capsys, tmp_path, monkeypatch, models, mochi, asked, kind, status
):
    def answer(*_, **__):
        try:
            raise hub_error(kind, status)
        except OSError as error:
            raise (OSError("cannot load it") if asked == "download" else error) from error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, name, **__: models / "mochi" / name)
    place = {"model_info": "huggingface_hub.HfApi", "hf_hub_download": "huggingface_hub"}
    monkeypatch.setattr(f"{place.get(asked, 'diffusers.DiffusionPipeline')}.{asked}", answer)
    error = refused(capsys, "generate", *mochi, "--model=mochi", "--prompt=x", "--out", tmp_path / "a.mp4")
    assert (
        "mochi-1-preview asks for permission: accept its terms on the hub, then run `hf auth login`" in error
    )


def test_a_hub_repository_takes_the_same_path_as_a_folder(capsys, tmp_path, models, mochi, monkeypatch):
    """The family name's repository, its files in the hub's layout served from a folder."""
    monkeypatch.setattr(hub, "find_commit", lambda repository, revision: "c0ffee")
    monkeypatch.setattr(hub, "fetch_file", lambda repository, commit, name: models / "mochi" / name)
    asked = []

    def fetch_pipeline(*arguments):
        asked.append(arguments)
        return models / "mochi"

    monkeypatch.setattr(hub, "fetch_pipeline", fetch_pipeline)
    (line,) = generate(capsys, *mochi, "--model", "mochi", "--prompt", "x", "--out", tmp_path / "a.mp4")
    assert asked == [("genmo/mochi-1-preview", "c0ffee", "bf16")]
    manifest = read_manifest(Path(line["path"]))
    assert manifest.model["repository"] == "genmo/mochi-1-preview"
    assert manifest.job["revision"] == "c0ffee"


def test_a_variant_is_used_where_the_folder_has_it(tmp_path):
    tiny_mochi().save_pretrained(tmp_path / "m", variant="bf16")
    files = dict(loading.weight_files(tmp_path / "m", "bf16"))
    assert [f.name for f in files["transformer"]] == ["diffusion_pytorch_model.bf16.safetensors"]
    assert set(files) == {"transformer", "vae", "text_encoder"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_stop_while_writing_leaves_nothing(capsys, tmp_path, mochi, monkeypatch, error):
    def fail(path, *_):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(writing, "_write_mp4", fail)
    code = main(["generate", *mochi, "--prompt", "x", "--out", str(tmp_path / "a.mp4"), "--quiet"])
    message = capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    if error is KeyboardInterrupt:
        assert (code, message) == (130, "oseg-video: interrupted; finished clips are kept\n")
    else:
        assert code == 2 and re.search(r"error: cannot write \S+a\.mp4: No space left on device\n", message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_130_and_no_file(tmp_path, mochi, number):
    flags = ["--steps=1000", "--prompt", "x", "--out", str(tmp_path / "clips")]
    with Command("generate", *mochi, *flags, terminal=True) as process:
        process.wait_for("/1000")  # the bar of the steps
        process.send_signal(number)
        assert process.wait(timeout=120) == 130
        assert process.err.rstrip().splitlines()[-1] == "oseg-video: interrupted; finished clips are kept"
        assert "Traceback" not in process.err
    assert not (tmp_path / "clips").exists()


def test_an_unexpected_error_is_one_line_too(capsys, tmp_path, mochi, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something\nbroke")

    monkeypatch.setattr(loading, "load_pipeline", fail)
    assert main(["generate", *mochi, "--prompt", "x", "--out", str(tmp_path / "a.mp4")]) == 1
    *said, error = capsys.readouterr().err.splitlines()
    assert error == "oseg-video: error: RuntimeError: something broke (--debug shows where)"
    assert len(said) == 1 and said[0].startswith("oseg-video: device ")


def test_a_large_model_is_not_run_on_a_cpu_that_nobody_asked_for(capsys, tmp_path, mochi, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device_module, "_LARGE", 1000)
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: pytest.fail("weights were read"))
    flags = ["generate", *mochi, "--prompt", "x", "--out", str(tmp_path / "a.mp4")]
    assert main([*flags, "--device", "auto"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("oseg-video: error: ") and "would run on the CPU" in error
    assert "--device cpu" in error
