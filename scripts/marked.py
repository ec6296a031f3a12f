"""Tables of READMEs that scripts write, each between marks of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oseg_video.files import check_place, write_text

README = Path(__file__).with_name("README.md")


def filled(text: str, name: str, tables: Iterable[str]) -> str:
    """The text with these tables between the marks of this name."""
    marks = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    content = "\n\n".join(tables)
    text, count = marks.subn(lambda found: f"{found[1]}{content}\n{found[2]}", text)
    assert count == 1, f"{name} has {count} places"
    return text


def read_stored(out: Path | None) -> dict[str, Any]:
    """The results of earlier runs; parts that are not made anew stay.

    Raises FileError, before any work, for a file that no benchmark wrote.
    """
    if out is None:
        return {}
    check_place(out)
    return json.loads(out.read_text()) if out.exists() else {}


def store(out: Path, script: str, result: Mapping[str, Any]) -> None:
    """Write the results of a script, whole or not at all."""
    write_text(out, json.dumps({"made_by": f"oseg-video {script}", **result}, indent=1) + "\n")


def markdown(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def made_with(result: Mapping[str, Any]) -> str:
    """A line on the versions that the parts of a result were made with."""
    versions = [part["versions"] for part in result.values() if isinstance(part, dict)]
    lines = {", ".join(f"{name} {number}" for name, number in one.items()): None for one in versions}
    return f"Made with {'; '.join(lines)}."


def write_readme(name: str, tables: Iterable[str], readme: Path | None = None) -> None:
    """Put these tables into a README, by default that of the scripts."""
    readme = readme or README
    readme.write_text(filled(readme.read_text(encoding="utf-8"), name, tables), encoding="utf-8")
