"""Make the README's image: clips of the study's test by OSEG, beside no guidance and CFG.

    python scripts/make_image.py            # writes .github/two-shapes.png

Nobody picks the clips: they are those at the quartiles of the paired difference in score, lower one first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from study.bench import Bench, Setting
from study.questions import NONE, TEST_SEED
from torch import Tensor

from oseg_video.embedded.tasks import TWO_SHAPES

RESULTS = Path(__file__).parent / "study" / "results.json"
SHOWN = (0, 3, 6, 9, 12, 15, 18)
SCALE = 2
TEXT_HEIGHT = 22
MARGIN = 112


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(".github/two-shapes.png"))
    parser.add_argument("--run-dir", type=Path, default=Path("runs/study"))
    arguments = parser.parse_args()
    test = json.loads(RESULTS.read_text())["test"]
    places = next(row["quartile clips"] for row in test["found"] if row["label"] == "oseg")
    bench = Bench(TWO_SHAPES, arguments.run_dir)
    prompts, clips = [], {}
    for name, guidance in methods_shown(test["found"]).items():
        setting = Setting(guidance=guidance, steps=test["made with"]["steps"], seed=TEST_SEED)
        prompts = bench.captions(setting.seed, places)
        clips[name] = bench.clips(setting, places)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    compose(prompts, clips).save(arguments.out, optimize=True)


def methods_shown(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By what stands beside its clips."""
    shown = {
        f"{row['label']}\n{row['values']['passes']:g} pass{'es' * (row['values']['passes'] > 1)}": row
        for row in rows
        if (row["group"], row["label"]) in (("plain", "none"), ("plain", "cfg"), ("alone", "oseg"))
    }
    return {name: row.get("guidance", NONE) for name, row in shown.items()}


def compose(prompts: Sequence[str], clips: Mapping[str, Tensor]) -> Image.Image:
    """Prompts from top to bottom, the methods' rows of frames below each other."""
    size = next(iter(clips.values())).shape[-1] * SCALE
    block = TEXT_HEIGHT + len(clips) * size
    sheet = Image.new("RGB", (MARGIN + len(SHOWN) * size, len(prompts) * block), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, prompt in enumerate(prompts):
        top = row * block
        draw.text((4, top + 3), prompt, fill="black", font=font)
        for place, (name, frames) in enumerate(clips.items()):
            y = top + TEXT_HEIGHT + place * size
            draw.text((4, y + size // 2 - 8), name, fill="black", font=font)
            for column, frame in enumerate(SHOWN):
                pixels = (frames[row, frame] * 255).byte().permute(1, 2, 0).numpy()
                image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
                x = MARGIN + column * size
                sheet.paste(image, (x, y))
                draw.rectangle((x, y, x + size - 1, y + size - 1), outline=(210, 210, 210))
    return sheet


if __name__ == "__main__":
    main()
