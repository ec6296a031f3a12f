"""Write the table of guidance methods in oseg_video/guidance/README.md: `python scripts/methods_table.py`.

Read off the methods themselves: their formulas from a plan, their words from what they change.
"""

from __future__ import annotations

import re
from pathlib import Path

from marked import write_readme

from oseg_video.guidance.methods import METHODS, BlockGuidance
from oseg_video.guidance.plan import Step
from oseg_video.settings import settings_of

README = Path(__file__).parent.parent / "oseg_video" / "guidance" / "README.md"
# Numbers that stand for themselves nowhere else, so that they can be read as letters again.
_W, _LAMBDA = 8.5, 0.125


def table() -> str:
    """One row for each method."""
    lines = ["| method (`--guidance`) | guided prediction | what is perturbed | |", "|---|---|---|---|"]
    for name, method in sorted(METHODS.items()):
        known = settings_of(method)
        given = {"guidance_scale": _W, "blocks": (1,)}
        if issubclass(method, BlockGuidance):
            given["scale"] = _LAMBDA
        guidance = method(**{key: value for key, value in given.items() if key in known})
        plan = guidance.plan(Step(index=5, count=10, noise_level=0.5, pipeline_scale=3.0))
        formula = plan.formula
        for number, letter in ((_W, "w"), (_W - 1, "(w - 1)"), (_LAMBDA, "lambda")):
            formula = formula.replace(f"{number:g} ", f"{letter} ")
        formula = re.sub(r"; .*?\)", ")", formula)
        change = getattr(guidance, "change", None)
        words = change.words if change else "nothing"
        about = (method.__doc__ or "").strip().split("\n")[0].rstrip(".")
        lines.append(f"| `{name}` | `{formula}` | {words} | {about.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    write_readme("methods", [table()], README)
