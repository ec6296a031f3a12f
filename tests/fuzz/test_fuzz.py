"""Command lines, recipes and manifests that nobody would write: one line each, and nothing lost.

OSEG_VIDEO_FUZZ is the number of examples of each test: a small one here, thousands by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from oseg_video.cli import main, parse
from oseg_video.config import GenerateJob, job_from_plain, known_keys
from oseg_video.config.manifest import new_manifest
from oseg_video.files import write_text
from oseg_video.jobs import generate as jobs_generate
from oseg_video.media import write_clip
from oseg_video.probing import job as probing_job
from oseg_video.types import OsegVideoError

EXAMPLES = int(os.environ.get("OSEG_VIDEO_FUZZ", "40"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 40,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)
COMMANDS = (
    "generate",
    "reproduce",
    "sweep",
    "compare",
    "tune",
    "evaluate",
    "contact-sheet",
    "probe",
    "landscape",
    "models",
    "info",
)
# What would fetch from the hub, start a cluster or processes, or print and end.
LEFT_OUT = {"--help", "-h", "--version", "--debug", "--engine", "--address", "--workers", "--gpus", "--open"}
HUB_LEFT_OUT = ("models",)

junk = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                " ",
                "0",
                "-1",
                "1",
                "2",
                "7",
                "nan",
                "inf",
                "-inf",
                "1e999",
                "1e400",
                "0x10",
                "1_000",
                "٣",
            ),
            *(
                "9" * 400,
                "9" * 5000,
                "0.5,0.1",
                "0,1",
                "1:2",
                "1.0:4,0.5:2",
                ":",
                ",",
                "1,,2",
                "true",
                "None",
            ),
            *(
                "a" * 300,
                "a" * 5000,
                "..",
                ".",
                "/",
                "~",
                "a\nb",
                "\x1b[31m",
                "\u009b",
                "%s",
                "{}",
                "-",
                "--",
            ),
            *(
                "embedded",
                "mochi",
                "svd",
                "sdxl",
                "mochy",
                "cfg",
                "oseg",
                "stg",
                "oseg-released",
                "png",
                "mp4",
            ),
            *("a.mp4", "a.json", "a.md", "r.yaml", "m.json", "clips", "clips/a", "clips/b", "missing.mp4"),
            *(
                "/dev/null",
                "/dev/full",
                "/proc/self/mem",
                "/etc/shadow",
                "x/y/z.png",
                "\udcff",
                "a\u202eb",
                "#",
            ),
        ]
    ),
    st.text(max_size=20).filter(lambda text: "\0" not in text),
    st.integers().map(str),
    st.floats().map(str),
)
plain: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**30, 10**400, 2**63, -1, 0, 1, 4, float("nan"), float("inf"), 1e300]),
        st.floats(),
        junk,
    ),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(junk, below, max_size=3)),
    max_leaves=5,
)


class WouldLoad(OsegVideoError):
    """The job has passed every check that comes before the weights."""


@pytest.fixture(scope="module", autouse=True)
def no_model() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise WouldLoad("the model would be loaded now")

    with pytest.MonkeyPatch.context() as patch:
        for module in (jobs_generate, probing_job):
            patch.setattr(module, "LoadedModel", refuse)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A working directory with a recipe, a manifest, and two clips of frames."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        try:
            for clip in ("a", "b"):
                (folder / "clips").mkdir(exist_ok=True)
                noise = torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8)
                write_clip(folder / "clips" / clip, noise, 8, format="png")
            (folder / "r.yaml").write_text("prompts: x\nsteps: 4\n")
            write_text(folder / "m.json", BASE.text)
            (folder / "a.json").write_text("{}")
            yield folder
        finally:
            os.chdir(before)


def job(**changes: Any) -> GenerateJob:
    return job_from_plain({"prompts": ["x"], "guidance": "cfg", **SIZE, **changes})


SIZE = {"steps": 4, "frames": 7, "height": 32, "width": 32, "fps": 8}
BASE = new_manifest(
    job(),
    model={"name": "embedded", "pipeline": "MochiPipeline", "commit": None, "sha256": "0"},
    clip={"frames": 7, "height": 32, "width": 32, "fps": 8, "sha256": "0"},
    machine={"device": "cpu", "name": "x", "system": "Linux", "threads": 1, "parallel": "1"},
    passes={},
    seconds={"generate": 1.0, "step": None},
    image=None,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check(place: Path, *arguments: str, codes: tuple[int, ...] = (0, 2)) -> None:
    """Run a command: an exit code that says what happened, lines, and every file as it was."""
    before = contents(place)
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            code = main(list(arguments))
        except SystemExit as end:  # of --help and --version
            code = int(end.code or 0)
    said = error.getvalue()
    case = f"{arguments} -> {code}: {said}"
    assert code in codes, case
    assert "Traceback" not in said and "--debug shows where" not in said, case
    if code == 2:
        lines = said.splitlines()
        assert lines and lines[-1].startswith("oseg-video: error: "), case
        assert sum(line.startswith("oseg-video: error: ") for line in lines) == 1, case
        assert len(lines[-1]) < 2000, case
        assert not re.search(r"object at 0x|<class |NoneType|list index", lines[-1]), case
    after = contents(place)
    assert {name: after.get(name) for name in before} == before, case
    for name in after.keys() - before.keys():  # results of a run that had nothing to object
        (place / name).unlink()
    assert not [name for name in after if ".oseg-video-" in name], case


def flags_of(command: str) -> list[tuple[str, bool]]:
    """The flags of a command, and whether each takes a value."""
    parser = argparse.ArgumentParser
    found: list[tuple[str, bool]] = []

    def spy(self: argparse.ArgumentParser, arguments: Any = None, namespace: Any = None) -> Any:
        commands = next(a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        for action in commands.choices[command]._actions:
            for flag in action.option_strings:
                if flag not in LEFT_OUT:
                    found.append((flag, action.nargs != 0))
        raise WouldLoad

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(WouldLoad):
        patch.setattr(parser, "parse_known_args", spy)
        parse([command])
    return found


FLAGS = {command: flags_of(command) for command in COMMANDS}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(COMMANDS))
    arguments = [command]
    if draw(st.booleans()):
        arguments += {
            "generate": ["--prompt", "x", "--out", "new.mp4"],
            "sweep": ["r.yaml", "--dry-run"],
            "compare": ["--guidance", "cfg", "--prompt", "x", "--out", "site", "--dry-run"],
            "tune": ["r.yaml", "--out", "site", "--dry-run"],
            "evaluate": ["clips", "--metrics", "frame_difference"],
            "contact-sheet": ["clips", "--out", "s.png", "--rows", "1"],
            "probe": ["--prompt", "x", "--out", "site"],
            "landscape": ["--prompt", "x", "--block", "3", "--out", "s.png"],
            "reproduce": ["m.json"],
            "info": ["m.json"],
        }.get(command, [])
    if command in ("sweep", "compare", "tune") and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    for flag, takes in draw(st.lists(st.sampled_from(FLAGS[command]), max_size=4)):
        value = draw(junk)
        arguments += [f"{flag}={value}"] if takes and draw(st.booleans()) else [flag, *[value] * takes]
    arguments += draw(st.lists(junk, max_size=1))
    return arguments


@fuzzed
@given(command_lines())
def test_command_lines(place: Path, arguments: list[str]) -> None:
    measured = arguments[0] in ("evaluate", "contact-sheet")
    check(place, *arguments, codes=(0, 1, 2) if measured or arguments[0] == "reproduce" else (0, 2))


@fuzzed
@given(
    st.dictionaries(
        st.one_of(st.sampled_from([*known_keys(), "extends", "methods", "about", "seeds", "models"]), junk),
        plain,
        max_size=5,
    ),
    st.sampled_from([("generate", "--config"), ("sweep",), ("compare", "--out", "site")]),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from("[]{}:&*!|>'\"%@`#-?,\n\t \0\x85<")), max_size=3),
)
def test_recipes(
    place: Path, content: dict[str, Any], command: tuple[str, ...], slips: list[tuple[int, str]]
) -> None:
    try:
        text = yaml.safe_dump(content, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        text = str(content)
    for position, letter in slips:
        position %= len(text) + 1
        text = text[:position] + letter + text[position:]
    path = place / "fuzzed.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    dry = "--explain" if command[0] == "generate" else "--dry-run"
    arguments = [*command, "fuzzed.yaml", dry]
    check(place, *arguments)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in below for found in paths_in(one, (*path, key)))]


SEARCH = {
    "metric": "frame_difference",
    "better": "lower",
    "baseline": "cfg",
    "methods": {"oseg": {"blocks": [1, 2], "oseg_scale": {"low": 0.1, "high": 2, "log": True}}, "stg": {}},
    "random": 3,
    "seed": 0,
    "prompts": ["x", "y"],
    "seeds": [0],
    "models": ["embedded"],
    "settings": {"steps": 2},
    "test": {"seeds": [1], "prompts": ["x", "y"]},
    "clips": 60,
}


@fuzzed
@given(st.data())
def test_searches(place: Path, data: st.DataObject) -> None:
    content = json.loads(json.dumps(SEARCH))
    places = [path for path in paths_in(SEARCH) if path]
    for path in data.draw(st.lists(st.sampled_from(places), max_size=2)):
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change has removed it
            inside = content
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = data.draw(plain)
    try:
        text = yaml.safe_dump(content, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        text = str(content)
    (place / "fuzzed.yaml").write_bytes(text.encode(errors="surrogatepass"))
    check(place, "tune", "fuzzed.yaml", "--out", "site", "--dry-run")


@fuzzed
@given(
    st.lists(st.tuples(st.sampled_from(paths_in(BASE.plain())), plain), min_size=1, max_size=3),
    st.sampled_from(["info", "yaml", "json", "reproduce", "evaluate", "contact-sheet"]),
)
def test_manifests(place: Path, changes: list[tuple[tuple[Any, ...], Any]], command: str) -> None:
    content: Any = json.loads(BASE.text)
    for path, value in changes:
        try:
            if not path:
                content = value
                continue
            inside = content
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = value
        except (KeyError, IndexError, TypeError):  # an earlier change has removed it
            continue
    manifest = place / "clips" / "a.json"
    manifest.write_text(json.dumps(content), encoding="utf-8")
    arguments, codes = {
        "info": (["info", "clips/a"], (0, 2)),
        "yaml": (["info", "clips/a", "--yaml"], (0, 2)),
        "json": (["info", "clips/a", "--json"], (0, 2)),
        "reproduce": (["reproduce", "clips/a", "--quiet"], (2,)),
        "evaluate": (["evaluate", "clips", "--metrics", "frame_difference", "--out", "e.json"], (0, 1)),
        "contact-sheet": (["contact-sheet", "clips", "--out", "s.png"], (0, 1)),
    }[command]
    try:
        check(place, *arguments, codes=codes)
    finally:
        manifest.unlink()
