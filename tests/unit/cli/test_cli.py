"""The command line without a model: parsing, help, and every mistake as one line with exit code 2."""

import json
import re
import subprocess
import sys

import pytest

from oseg_video.adapters import all_adapters
from oseg_video.cli import main, parse
from oseg_video.cli.settings import flag_settings
from oseg_video.config import known_keys
from oseg_video.embedded import MODELS
from oseg_video.guidance.methods import METHODS
from oseg_video.types import OsegVideoError, SettingError

PROMPT = ("--prompt", "a red circle")


def run(*arguments, program=("-m", "oseg_video")):
    return subprocess.run([sys.executable, *program, *arguments], capture_output=True, text=True, check=False)


def settings(*arguments):
    return flag_settings(parse(["generate", *arguments]))


def refused(capsys, *arguments):
    """Standard error of a command that must end with exit code 2 and one line."""
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"oseg-video: error: [^\n]+\n", output.err), output.err
    return output.err


# Counts what Python does: seconds are the machine's. 190,000 calls take 0.3 s of an AMD EPYC (Zen 4).
CALLS_OF_HELP = """
import sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
from oseg_video.cli import main
try:
    main(["generate", "--help"])
finally:
    sys.setprofile(None)
    heavy = [name for name in ("torch", "numpy", "diffusers") if name in sys.modules]
    print(calls, heavy, file=sys.stderr)
"""


def test_help_is_instant_and_imports_nothing_heavy():
    calls, heavy = run(program=("-c", CALLS_OF_HELP)).stderr.split(maxsplit=1)
    assert heavy == "[]\n"
    assert int(calls) < 250_000


CHEAP = (
    "generate --prompt x --steps 0",
    "generate --prompt x --config /nowhere.yaml",
    "generate --prompt x --image /nowhere.png",
    "generate --prompt x --out /proc/nowhere/a.mp4",
    "generate --prompt x --parallel branch=x",
    "reproduce /nowhere.mp4",
    "evaluate /nowhere --metrics frame_difference",
    "contact-sheet /nowhere --out a.png",
    "sweep /nowhere.yaml --out o",
    "probe --prompt x --steps 0",
    "landscape --prompt x --block 3 --out a.txt",
    "info /nowhere.mp4",
    "tune /nowhere.yaml --out o",
    "tune nonesuch --out o",
    "compare /nowhere.yaml --out o",
    "compare nonesuch --out o",
    "compare --out o",
    "compare --guidance osge --prompt x --out o",
    "compare embedded --seeds x --out o",
    "compare embedded --out /dev/null",
    "tune embedded --out /dev/null",
    "sweep embedded --out /dev/null",
)
UNIMPORTED = """
import sys
class Imported(BaseException): pass
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "numpy", "diffusers"): raise Imported(name)
sys.meta_path.insert(0, Finder())
from oseg_video import console
from oseg_video.cli import main
"""


def test_what_can_be_refused_without_a_library_is_refused_before_its_import():
    done = run(program=("-c", f"{UNIMPORTED}\nprint([main(one.split()) for one in {CHEAP}])"))
    assert done.stdout == f"{[2] * len(CHEAP)}\n", done.stderr
    assert len(done.stderr.splitlines()) == len(CHEAP)


def test_a_line_is_shown_at_a_terminal_before_the_imports(tmp_path):
    (tmp_path / "r.yaml").write_text("prompts: [x]\nmethods: {cfg: {guidance: cfg}}\n")
    (tmp_path / "clips").mkdir()
    for command in (
        f"generate --prompt x --out {tmp_path}/a.mp4",
        f"sweep {tmp_path}/r.yaml --out {tmp_path}/o",
        f"probe --prompt x --out {tmp_path}/p",
        f"landscape --prompt x --block 3 --out {tmp_path}/a.png",
    ):
        terminal = "console._is_terminal = lambda stream: True"
        code = f"try: main({command.split()})\nexcept Imported as one: print(one)"
        done = run(program=("-c", f"{UNIMPORTED}\n{terminal}\n{code}"))
        assert done.stdout in ("torch\n", "numpy\n"), command
        assert done.stderr == "oseg-video: loading torch and diffusers\n", command


def test_help_names_every_setting():
    text = run("generate", "--help").stdout
    for name, key in known_keys().items():
        assert key.setting.flag_of(name) in text
    assert "--prompts FILE" in text and "--config RECIPE" in text


def test_flags_become_settings():
    given = settings(
        *("--prompt", "a", "--prompt", "b", "--seed", "1", "2", "--seed", "3"),
        *("--blocks", "1,3", "--blur-sigma", "2,inf"),
        *("--interval", "0.1,0.9", "--vae-tiling", "--no-compile", "--mix", "1", "--guidance", "seg"),
    )
    assert given == {
        "prompts": ["a", "b"],
        "seeds": [1, 2, 3],
        "blocks": [1, 3],
        "blur_sigma": [2.0, "inf"],
        "interval": [0.1, 0.9],
        "vae_tiling": True,
        "compile": False,
        "mix": 1.0,
        "guidance": "seg",
    }


def test_scales_and_blocks_as_flags():
    given = settings(
        *(
            "--stg-scale",
            "1.0:4, 0.5:2",
            "--rescale",
            "0.7",
            "--blocks",
            "dual:2,single:17, 34,up.1:temporal",
        ),
        *(
            "--mode",
            "attention_values",
            "--text",
            "cfg-zero",
            "--zero-steps",
            "0",
            "--pag-scale",
            "0.5:1,1:3",
        ),
    )
    assert given == {
        "stg_scale": {"breakpoints": {"1.0": 4.0, "0.5": 2.0}},
        "rescale": 0.7,
        "blocks": [34, "dual:2", "single:17", "up.1:temporal"],
        "mode": "attention_values",
        "text": "cfg-zero",
        "zero_steps": 0,
        "pag_scale": {"breakpoints": {"1.0": 3.0, "0.5": 1.0}},
    }


def test_only_flags_that_were_given_are_settings():
    assert settings() == {}


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufefffirst\n# a comment\n\n  # another\n  second, with ünïcode 🎈 \n", encoding="utf-8")
    assert settings("--prompts", str(path))["prompts"] == ["first", "second, with ünïcode 🎈"]
    assert settings("--prompt", "zero", "--prompts", str(path))["prompts"][0] == "zero"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["genrate"], "invalid choice: 'genrate'"),
        (["reproduce"], "FILE"),
        (["generate"], "no prompt given"),
        (
            ["generate", *PROMPT, "--stesp", "3"],
            "unknown argument '--stesp' of generate; did you mean '--steps'?",
        ),
        (
            ["generate", *PROMPT, "--xyzzy=3"],
            "unknown argument '--xyzzy=3' of generate; see oseg-video generate",
        ),
        (["--quiet", "generate", *PROMPT], "--quiet stands before generate; flags come after the command"),
        (["generate", *PROMPT, "stray"], "unknown argument 'stray' of generate"),
        (["generate", *PROMPT, "--rule", "published"], "that of the released code is guidance oseg-released"),
        (["generate", *PROMPT, "--published-skip"], "it is skip_conditional of guidance oseg-released now"),
        (["generate", *PROMPT, "--steps"], "expected one argument"),
        (["generate", *PROMPT, "--steps", "ten"], "--steps must be an integer, got 'ten'"),
        (["generate", *PROMPT, "--steps", "0"], "steps must be from 1 to 1000, got 0"),
        (["generate", *PROMPT, "--fps", "nan"], "--fps must be a number, got 'nan'"),
        (
            ["generate", *PROMPT, "--guidance", "sga"],
            f"guidance must be one of {', '.join(METHODS)}, got 'sga'",
        ),
        (["generate", *PROMPT, "--blocks", ""], "--blocks must be block indices (integers >= 0) or names"),
        (["generate", *PROMPT, "--blocks", "1,,2"], "names (a-z, 0-9 and _ . : -), got ''"),
        (
            ["generate", *PROMPT, "--blocks", "1.0:3"],
            "(blocks by noise level go in a YAML file), got '1.0:3'",
        ),
        (
            ["generate", *PROMPT, "--stg-scale", "1.0:4,2"],
            "--stg-scale must be a number, or noise levels with",
        ),
        (["generate", *PROMPT, "--stg-scale", "1.0:x"], "--stg-scale must be a number, got 'x'"),
        (["generate", *PROMPT, "--stg-scale", "x:1"], "--stg-scale must be scheduled by noise levels from 0"),
        (
            ["generate", *PROMPT, "--stg-scale", "0.5:4"],
            "--stg-scale must be scheduled from noise level 1 down",
        ),
        (["generate", *PROMPT, "--interval", "0.5"], "--interval must be two numbers"),
        (["generate", *PROMPT, "--seed", "-1"], "--seed must be from 0 to"),
        (["generate", *PROMPT, "--seed", "1", "1"], "seeds must differ"),
        (["generate", "--prompt", ""], "a prompt must not be empty"),
        (["generate", "--prompt", "\udce4"], "UTF-8"),
        (["generate", "--prompts", "/nowhere.txt"], "cannot read /nowhere.txt: No such file"),
        (["generate", *PROMPT, "--config", "/nowhere.yaml"], "cannot read /nowhere.yaml: No such file"),
        (["info", "/nowhere.mp4"], "no such file: /nowhere.mp4"),
        (["info", ""], "FILE must name a clip or its manifest, got ''"),
        (["info", "/"], "/ is a folder without a manifest beside it; name one of the clips in it"),
        (["info", "."], ". is a folder without a manifest beside it"),
        (["reproduce", "/nowhere.mp4"], "no such file: /nowhere.mp4"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_a_config_file_with_an_unknown_key(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("stpes: 3")
    assert "mine.yaml: unknown key 'stpes'; did you mean 'steps'?" in refused(
        capsys, "generate", *PROMPT, "--config", str(path)
    )


def test_names_may_hold_commas_in_parentheses() -> None:
    label = "oseg (perturb_scale=1.0, blocks=2,3)"
    options = parse(["contact-sheet", "clips", "--out", "a.png", "--methods", f"cfg, {label}"])
    assert options.methods == ("cfg", label)
    with pytest.raises(OsegVideoError, match="argument --methods: must name something, got ' ,'"):
        parse(["contact-sheet", "clips", "--out", "a.png", "--methods", " ,"])


def test_debug_leaves_an_error_as_it_is_for_its_traceback():
    with pytest.raises(SettingError, match="no prompt given"):
        main(["generate", "--debug"])


def test_models_lists_families_pipelines_recipes_and_tests(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for word in ("embedded", "mochi-oseg", "genmo/mochi-1-preview", "LTXImageToVideoPipeline", "tested:"):
        assert word in text
    assert main(["models", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    families = {adapter.family for adapter in all_adapters()}
    assert {entry["name"] for entry in entries} == {*MODELS, *families} >= {"embedded", "mochi", "ltx"}
    kinds = {e["name"]: [kind for kind in e if " to " in kind and e[kind]] for e in entries}
    assert kinds["wan"] == ["text to video", "image to video"] and kinds["mochi"] == ["text to video"]
    assert kinds["svd"] == ["image to video"] and kinds["sdxl"] == ["text to image"]
    assert "for --image Wan-AI/Wan2.1-I2V-14B-480P-Diffusers" in text
    assert all(entry["about"] and entry["tested"] and entry["recipes"] for entry in entries)


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and re.match(r"oseg-video \d+\.", capsys.readouterr().out)
