"""The command `oseg-video`: parse, one library call, exit code.

Exit codes: 0 done, 1 the clip was not reproduced or the program failed, 2 a mistake in the call or something
that the user can mend (one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from oseg_video.config import FIELDS, GenerateJob, known_or_nearest, resolve_job
from oseg_video.config.kinds import SWITCH, TEXTS
from oseg_video.types import OsegVideoError, SettingError

if TYPE_CHECKING:
    from oseg_video.runtime.generate import ClipResult

PROGRAM = "oseg-video"
_GROUPS = {
    "clip": "what to make",
    "family": "what only some models have (default: the pipeline's)",
    "model": "model and machine",
    "method": "guidance",
    "guidance": "guidance settings (default: the recipe of model and method)",
    "output": "output",
}
_EXAMPLES = """examples:
  oseg-video generate --prompt "a blue square moving up on a black background" --out a.mp4
  oseg-video generate --model mochi --offload model --prompt "a paper boat" --seed 1 2 3 --out clips/
  oseg-video generate --model svd --offload model --image cat.png --out cat.mp4
  oseg-video reproduce a.mp4
"""


class UsageError(OsegVideoError):
    """A command line that cannot be parsed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        options = _parse(arguments)
        with _terminable(), _quiet_libraries(debug):
            return int(options.run(options))
    except KeyboardInterrupt:
        if debug:
            raise
        _say("interrupted; finished clips are kept")
        return 130
    except BrokenPipeError:
        # The reader of standard output went away (`| head`): nothing left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OsegVideoError as error:
        if debug:
            raise
        _say(f"error: {error}")
        return 2
    except Exception as error:
        if debug:
            raise
        _say(f"error: {type(error).__name__}: {error} (--debug shows where)")
        return 1


def _say(text: str) -> None:
    print(f"{PROGRAM}: {' '.join(text.split())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """argparse, but every mistake is one line, raised and not printed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [flag for action in commands[options.command]._actions for flag in action.option_strings]
        name = unknown[0].split("=")[0]
        hint = f"; {known_or_nearest(name, flags)}" if name.startswith("--") else ""
        if "known:" in hint:
            hint = f"; see {PROGRAM} {options.command} --help"
        raise UsageError(f"unknown argument {unknown[0]!r} of {options.command}{hint}")
    return options


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog=PROGRAM, description="Guided video generation (OSEG).", epilog=_EXAMPLES)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="make clips from prompts or a picture", epilog=_EXAMPLES)
    _add_setting_flags(generate)
    _add_run_flags(generate)
    generate.add_argument(
        "--explain", action="store_true", help="say what the job would do and cost, without loading weights"
    )
    generate.set_defaults(run=_generate)

    reproduce = commands.add_parser("reproduce", help="make a clip again and compare its frames")
    reproduce.add_argument("file", metavar="FILE", help="a clip or its .json manifest")
    reproduce.add_argument("--out", metavar="TEXT", help="default: beside FILE, as NAME-reproduced")
    reproduce.add_argument("--device", metavar="TEXT", help="default: as in the manifest")
    _add_run_flags(reproduce)
    reproduce.set_defaults(run=_reproduce)

    models = commands.add_parser("models", help="list model families, pipelines and recipes")
    models.add_argument("--json", action="store_true", help="one JSON object a family")
    models.add_argument("--debug", action="store_true", help="show tracebacks")
    models.set_defaults(run=_models)

    info = commands.add_parser("info", help="print how a clip was made")
    info.add_argument("file", metavar="FILE", help="a clip or its .json manifest")
    info.add_argument("--yaml", action="store_true", help="print its settings as a file for --config")
    info.add_argument("--debug", action="store_true", help="show tracebacks")
    info.set_defaults(run=_info)
    return parser, {"generate": generate, "reproduce": reproduce, "models": models, "info": info}


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROGRAM} {version(PROGRAM)}")
        raise SystemExit(0)


def _add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting of GenerateJob; their values stay text until `_flag_settings` reads them."""
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    for name, spec in FIELDS.items():
        meta = spec.metadata
        flag = meta["flag"] or "--" + name.replace("_", "-")
        text = _help(meta["help"], spec.default, meta["choices"])
        options: dict[str, Any] = {"dest": f"setting_{name}", "help": text, "default": argparse.SUPPRESS}
        if meta["kind"] is SWITCH:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = (
                f"{{{','.join(meta['choices'])}}}" if meta["choices"] else meta["kind"].metavar
            )
            if meta["kind"] is TEXTS:
                options["action"] = "append"
            elif name == "seeds":
                options["nargs"] = "+"
                options["metavar"] = "N"
        groups[meta["group"]].add_argument(flag, **options)
    groups["clip"].add_argument("--prompts", metavar="FILE", help="a text file with one prompt a line")
    groups["output"].add_argument("--config", metavar="FILE.yaml", help="settings in YAML; flags win over it")


def _help(text: str, default: Any, choices: Sequence[str] | None) -> str:
    # A percent sign would be a placeholder of argparse.
    text = text.replace("%", "%%")
    shown = isinstance(default, str | tuple) and default and not isinstance(default, bool)
    value = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {value})" if shown else text


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("this run")
    group.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    group.add_argument("--quiet", action="store_true", help="no progress; print only the path of each clip")
    group.add_argument("--json", action="store_true", help="print one JSON object a clip")
    group.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' messages")


def _flag_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings given by flags, as plain values. Raises SettingError naming the flag."""
    given: dict[str, Any] = {}
    for name, spec in FIELDS.items():
        text = getattr(options, f"setting_{name}", None)
        if text is None:
            continue
        kind = spec.metadata["kind"]
        flag = spec.metadata["flag"] or "--" + name.replace("_", "-")
        try:
            if kind is SWITCH:
                given[name] = text
            elif isinstance(text, list):
                given[name] = [value for part in text for value in kind.to_plain(kind.from_text(part))]
            else:
                given[name] = kind.to_plain(kind.from_text(text))
        except SettingError as error:
            raise SettingError(f"{flag} must be {error}") from None
    if options.prompts is not None:
        given["prompts"] = given.get("prompts", []) + _read_prompts(Path(options.prompts))
    return given


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{path} has no prompts")
    return prompts


def _job(options: argparse.Namespace) -> GenerateJob:
    def family_of(model: str, revision: str | None) -> str:
        if model == GenerateJob.__dataclass_fields__["model"].default:
            return model
        from oseg_video.runtime.loading import recipe_of

        return recipe_of(model, revision)

    settings = _flag_settings(options)
    config = Path(options.config) if options.config is not None else None
    return resolve_job(settings, config, family_of=family_of)


def _generate(options: argparse.Namespace) -> int:
    job = _job(options)
    if options.explain:
        from oseg_video.runtime.explain import explain

        print(explain(job))
        return 0
    from oseg_video.runtime.generate import generate
    from oseg_video.runtime.progress import Progress

    generate(
        job,
        overwrite=options.overwrite,
        progress=Progress(quiet=options.quiet),
        on_clip=lambda result: _print_clip(result, options),
    )
    return 0


def _print_clip(result: ClipResult, options: argparse.Namespace, **extra: Any) -> None:
    """The final line of a clip, on standard output."""
    if options.json:
        line = {
            "path": str(result.path),
            "prompt": result.prompt,
            "seed": result.seed,
            "seconds": round(result.seconds, 3),
            "seconds_per_step": result.seconds_per_step,
            "sha256": result.sha256,
            **extra,
        }
        print(json.dumps(line), flush=True)
    elif options.quiet:
        print(result.path, flush=True)
    else:
        step = "" if result.seconds_per_step is None else f"  {result.seconds_per_step:.2f} s/step"
        print(f"{result.path}  {result.seconds:.1f} s{step}", flush=True)


def _reproduce(options: argparse.Namespace) -> int:
    from oseg_video.runtime.progress import Progress
    from oseg_video.runtime.reproduce import reproduce

    done = reproduce(
        Path(options.file),
        out=options.out,
        device=options.device,
        overwrite=options.overwrite,
        progress=Progress(quiet=options.quiet),
    )
    _print_clip(done.result, options, identical=done.identical, differences=list(done.differences))
    if done.identical:
        if not (options.quiet or options.json):
            print(f"identical: every frame equals those of {options.file}")
        return 0
    changed = ", ".join(done.differences) or "nothing that the manifest records"
    _say(f"the frames differ from those of {options.file}; {len(done.differences)} differences: {changed}")
    return 1


def _models(options: argparse.Namespace) -> int:
    from oseg_video.runtime.catalogue import catalogue, describe

    for entry in catalogue():
        print(json.dumps(entry) if options.json else describe(entry))
    return 0


def _info(options: argparse.Namespace) -> int:
    from oseg_video.config import dump_yaml
    from oseg_video.runtime.manifest import manifest_job, manifest_text, read_manifest

    manifest = read_manifest(Path(options.file))
    print(dump_yaml(manifest_job(manifest)) if options.yaml else manifest_text(manifest), end="")
    return 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, so that temporary files are removed."""

    def stop(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are not ours
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _quiet_libraries(debug: bool) -> Iterator[None]:
    """Keep the libraries' warnings, meant for their developers, off the user's screen."""
    if debug:
        yield
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # These two set the level of their loggers when they are first imported, from the environment.
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for name in ("huggingface_hub", "imageio", "imageio_ffmpeg", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
