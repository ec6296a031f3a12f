"""The names that a user imports, and what a type checker makes of them in a user's file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import oseg_video
from oseg_video.jobs.guided import named_method

ROOT = Path(__file__).parents[2]


def test_every_name_is_there_and_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, oseg_video; from oseg_video import OSEG, APG; OSEG(text=APG(eta=0.5), blocks=(34,));"
        "print([m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules]);"
        "[getattr(oseg_video, name) for name in oseg_video.__all__]; print('all', oseg_video.__version__);"
        "print(callable(oseg_video.compare), callable(oseg_video.sweep))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[]", f"all {oseg_video.__version__}", "True True"]
    with pytest.raises(AttributeError, match="OSEGG"):
        oseg_video.OSEGG  # noqa: B018


def test_a_type_checker_knows_the_settings(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        "from oseg_video import APG, OSEG, guided\n"
        "OSEG(blur_sigma=1.0, text=APG(eta=0.5), blocks=(34,))\n"
        "OSEG(blur_sgima=1)\n"
        "OSEG(text='apg')\n"
        "guided(object(), 3)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    said = subprocess.run([*command, str(user)], cwd=ROOT, capture_output=True, text=True).stdout
    wrong = {
        int(line.split(":")[1]) for line in said.splitlines() if "user.py" in line and ": error:" in line
    }
    assert wrong == {3, 4, 5}, said
    assert 'Unexpected keyword argument "blur_sgima"' in said


def test_a_methods_name_is_the_recipe_of_the_family() -> None:
    from diffusers import MochiPipeline

    from oseg_video.embedded import MODEL_PATH
    from tests.tiny import tiny_mochi

    pipe = MochiPipeline.from_pretrained(MODEL_PATH)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "num_frames": 7, "num_inference_steps": 2, "output_type": "latent"}
    made = []
    for guidance in ("oseg", oseg_video.recipe("embedded", "oseg")):
        with oseg_video.guided(pipe, guidance) as report:
            seed = torch.Generator().manual_seed(0)
            made.append(pipe("a red circle", **size, generator=seed, max_sequence_length=32).frames)
        assert report.steps[0].passes[-1].fired == ("transformer_blocks.3.attn1",)
    assert torch.equal(*made)
    with pytest.raises(oseg_video.OsegVideoError, match=r"guidance must be one of .*, got 'osge'"):
        oseg_video.guided(pipe, "osge")
    # Mochi's own recipe names a block that a tiny one does not have.
    with (
        pytest.raises(oseg_video.OsegVideoError, match="no block 34"),
        oseg_video.guided(tiny_mochi(), "stg"),
    ):
        pass


@pytest.mark.parametrize(
    "weights", ["Lightricks/LTX-Video-0.9.7-distilled", "/some/folder/LTX-Video-0.9.7-distilled/"]
)
def test_a_recipe_knows_the_weights_that_a_pipeline_was_loaded_from(weights: str) -> None:
    class LTXPipeline:
        name_or_path = weights

    assert named_method(LTXPipeline(), "cfg").guidance_scale == 1
    LTXPipeline.name_or_path = "Lightricks/LTX-Video"
    assert (
        named_method(LTXPipeline(), "cfg")
        == oseg_video.recipe("ltx", "cfg")
        != oseg_video.recipe("ltx", "cfg", weights=weights)
    )
