"""Make the README's image: frames of CFG and OSEG for the same prompts and seeds, by the shipped model.

python scripts/make_image.py            # writes .github/cfg-and-oseg.png
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from oseg_video.config import resolve_job
from oseg_video.jobs.generate import generate
from oseg_video.media import read_clip

PROMPTS = (
    "a red circle moving right on a white background",
    "a blue square moving up on a black background",
    "a yellow cross moving diagonally down and to the left on a gray background",
    "a purple triangle moving left on a white background",
)
METHODS = ("cfg", "oseg")
SHOWN = (0, 3, 6, 9, 12, 15, 18)
SCALE = 2
TEXT_HEIGHT = 22
MARGIN = 52


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(".github/cfg-and-oseg.png"))
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = {method: make_clips(method, arguments.seed, Path(folder)) for method in METHODS}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    compose(clips).save(arguments.out, optimize=True)


def make_clips(method: str, seed: int, folder: Path) -> list[torch.Tensor]:
    """One clip per prompt, uint8 [F, 3, H, W], by the method's shipped recipe."""
    flags = {"prompts": list(PROMPTS), "seeds": [seed], "guidance": method, "format": "png"}
    job = resolve_job(flags | {"out": str(folder / method)}, family_of=lambda model, _: model)
    return [read_clip(result.path).frames for result in generate(job)]


def compose(clips: dict[str, list[torch.Tensor]]) -> Image.Image:
    """Prompts from top to bottom, the methods' rows of frames below each other."""
    size = clips[METHODS[0]][0].shape[-1] * SCALE
    block = TEXT_HEIGHT + len(METHODS) * size
    sheet = Image.new("RGB", (MARGIN + len(SHOWN) * size, len(PROMPTS) * block), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, prompt in enumerate(PROMPTS):
        top = row * block
        draw.text((4, top + 3), prompt, fill="black", font=font)
        for place, method in enumerate(METHODS):
            y = top + TEXT_HEIGHT + place * size
            draw.text((4, y + size // 2 - 8), method.upper(), fill="black", font=font)
            for column, frame in enumerate(SHOWN):
                pixels = clips[method][row][frame].permute(1, 2, 0).numpy()
                image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
                x = MARGIN + column * size
                sheet.paste(image, (x, y))
                draw.rectangle((x, y, x + size - 1, y + size - 1), outline=(210, 210, 210))
    return sheet


if __name__ == "__main__":
    main()
