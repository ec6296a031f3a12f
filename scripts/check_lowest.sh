#!/usr/bin/env bash
# Do the lowest versions that pyproject.toml allows work? By hand: installs them into build/lowest (what the tests
# need besides as in the constraints, and torch, of which few wheels run with one Python), then makes a clip of
# the shipped model, which a classifier judges, and runs unit tests. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=build/lowest/bin/python

"${PYTHON:-python3}" -m venv --clear build/lowest
"$python" - > build/lowest/lowest.txt <<'PY'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
with open("scripts/constraints.txt") as file:
    newest = dict(line.strip().split("==") for line in file if "==" in line)
for requirement in project["dependencies"]:
    name, bound, marker = re.fullmatch(r"([\w-]+)>=([\d.]+)(\s*;.*)?", requirement).groups()
    print(f"{name}=={newest['torch'] if name == 'torch' else bound}{marker or ''}")
for requirement in project["optional-dependencies"]["dev"]:
    name = re.match(r"[\w-]+", requirement)[0]
    print(f"{name}=={newest[name]}")
PY
cat build/lowest/lowest.txt
"$python" -m pip install --quiet --disable-pip-version-check -r build/lowest/lowest.txt -e .

export HF_HUB_OFFLINE=1
"$python" - <<'PY'
import sys
import tempfile
from pathlib import Path

from oseg_video.cli import main
from oseg_video.embedded.classifier import load_classifier
from oseg_video.embedded.dataset import parse_caption
from oseg_video.media import read_clip

prompt = "a red circle moving right on a white background"
with tempfile.TemporaryDirectory() as folder:
    out = str(Path(folder, "a.mp4"))
    if main(["generate", "--prompt", prompt, "--guidance", "oseg", "--seed", "7", "--out", out]) != 0:
        sys.exit("the clip was not made")
    # Through the file: an ffmpeg that writes other colours shows here.
    (judged,) = load_classifier().judge(read_clip(Path(out)).frames[None].float() / 255)
if judged != parse_caption(prompt):
    sys.exit(f"the clip shows {judged}, asked was {prompt!r}")
print(f"the clip shows {prompt}")
PY
"$python" -m pytest -q -m "not slow" "${@:-tests/unit}"
