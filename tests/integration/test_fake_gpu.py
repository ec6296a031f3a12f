"""Nothing of ours mixes devices or copies in every step: every family's denoiser on a GPU without values."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAMILIES = ("mochi", "ltx", "wan", "cogvideox", "svd", "sdxl", "hunyuan", "hunyuan15")


@pytest.fixture(scope="module")
def said() -> str:
    """By a process of its own, for which torch has another kind of device."""
    command = [sys.executable, "-m", "tests.integration.fake_gpu"]
    environment = {**os.environ, "PYTHONPATH": "scripts"}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    ).stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_guided_steps_mix_no_devices_and_copy_once(said: str, family: str) -> None:
    assert f"{family} ok" in said.splitlines(), said
