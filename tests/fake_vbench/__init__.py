"""An environment as `oseg-video vbench setup` leaves it, with a stand-in for the package `vbench`."""

from __future__ import annotations

import hashlib
import json
import shutil
import venv
from pathlib import Path
from typing import Any

from oseg_video.evaluation.vbench.environment import REQUIREMENTS
from oseg_video.evaluation.vbench.scores import DIMENSIONS

_SITE = Path(__file__).with_name("site")

FLICKERING = "In a still frame, a stop sign"
SUITE: list[dict[str, Any]] = [
    {"prompt_en": "a fantasy landscape", "dimension": ["overall_consistency", "aesthetic_quality"]},
    {"prompt_en": "A fantasy landscape", "dimension": ["overall_consistency", "imaging_quality"]},
    {"prompt_en": "A corgi's head, café: 100% <b>?", "dimension": ["subject_consistency", "dynamic_degree"]},
    {"prompt_en": "A person is riding a bike", "dimension": ["human_action", "motion_smoothness"]},
    {"prompt_en": FLICKERING, "dimension": ["temporal_flickering"]},
    {
        "prompt_en": "alley",
        "dimension": [
            *("scene", "background_consistency", "object_class", "multiple_objects", "color"),
            *("spatial_relationship", "appearance_style", "temporal_style"),
        ],
    },
]
"""A suite that has every dimension, two prompts that differ in case, and letters that shells dislike."""


def build_environment(data_home: Path) -> Path:
    """In XDG_DATA_HOME = `data_home`; returns its folder."""
    folder = data_home / "oseg-video" / "vbench"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    shutil.copytree(_SITE, site, dirs_exist_ok=True)
    for dimension in DIMENSIONS:
        (site / "vbench" / f"{dimension}.py").write_text(
            "import functools\n"
            "from .scores import compute\n"
            "from .utils import fault\n"
            f"if fault({dimension!r}) == 'import':\n    import detectron2\n"
            f"compute_{dimension} = lambda info, device, submodules: compute({dimension!r}, info)\n"
        )
    (site / "vbench" / "VBench_full_info.json").write_text(json.dumps(SUITE))
    actions = site / "vbench" / "third_party" / "umt" / "kinetics_400_categories.txt"
    actions.parent.mkdir(parents=True)
    actions.write_text("riding a bike\t0\nMarching\t1\n")
    requirements = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    (folder / "oseg-video.json").write_text(json.dumps({"complete": True, "requirements": requirements}))
    return folder
