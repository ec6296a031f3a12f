"""`oseg-video contact-sheet`: what is where on the image."""

import re

import pytest
import torch
from PIL import Image

from oseg_video.cli import main
from oseg_video.comparison.contact_sheet import _strip, _strip_width
from oseg_video.evaluation.clips import find_clips
from oseg_video.media import read_clip
from tests.drawn import write_frames, write_manifest

COLOURS = {"cfg": (200, 0, 0), "oseg": (0, 160, 0)}


@pytest.fixture
def clips(tmp_path):
    """Two methods, two prompts; a method's colour, in the first frame dark and in the last bright."""
    folder = tmp_path / "clips"
    for method, colour in COLOURS.items():
        for prompt in ("a", "b"):
            if (method, prompt) == ("cfg", "b"):
                continue
            frames = torch.stack([torch.tensor(colour) * level // 4 for level in range(5)]).to(torch.uint8)
            path = folder / f"{method}-{prompt}"
            write_frames(path, frames[:, :, None, None].expand(-1, -1, 20, 40).contiguous())
            write_manifest(path, prompts=[prompt], seeds=[3], guidance=method)
    return folder


def sheet(folder, out, *flags):
    assert main(["contact-sheet", str(folder), "--out", str(out), "--height", "100", "--quiet", *flags]) == 0
    return out


def runs(image, top):
    """Colours of frames from left to right in a line of pixels: those wider than a letter's stem."""
    found = []
    for x in range(image.width - 50):
        line = {image.getpixel((x + offset, top)) for offset in range(50)}
        if len(line) == 1 and (not found or found[-1] != next(iter(line))):
            found += line
    return [colour for colour in found if colour != (255, 255, 255)]


def test_rows_are_prompts_columns_methods_and_frames_are_spread(clips, tmp_path):
    image = Image.open(sheet(clips, tmp_path / "s.png"))
    top = image.height - 50
    halves = {m: [tuple(c * level // 4 for c in COLOURS[m]) for level in (0, 2, 4)] for m in COLOURS}
    assert runs(image, top - 100) == [*halves["cfg"], *halves["oseg"]]
    assert runs(image, top) == halves["oseg"]  # cfg has no clip of that prompt
    turned = Image.open(sheet(clips, tmp_path / "t.png", "--methods", "oseg,cfg", "--frames", "1"))
    assert runs(turned, top - 100) == [halves["oseg"][1], halves["cfg"][1]]
    one = Image.open(sheet(clips, tmp_path / "u.png", "--rows", "1"))
    assert image.height - one.height == 100 + 4 and one.width == image.width


def test_the_last_frame_of_a_strip_is_whole(clips):
    clip = find_clips([clips]).clips[0]
    assert (clip.height, clip.width, clip.frames) == (20, 40, 5)
    strip = _strip(clip, 5, 60)
    assert strip.width == _strip_width(clip, 5, 60)
    last = tuple(read_clip(clip.path).frames[-1, :, 0, 0].tolist())
    columns = [x for x in range(strip.width) if strip.getpixel((x, 30)) == last]
    assert columns == list(range(strip.width - 120, strip.width))


def test_labels_are_written(clips, tmp_path):
    image = Image.open(sheet(clips, tmp_path / "s.png")).convert("L")
    labels = image.crop((0, image.height - 104, 200, image.height))
    header = image.crop((200, 0, image.width, 18))
    assert labels.getextrema()[0] < 100 and header.getextrema()[0] < 100


def test_a_sheet_as_pdf(clips, tmp_path):
    data = sheet(clips, tmp_path / "s.pdf").read_bytes()
    image = Image.open(sheet(clips, tmp_path / "s.png"))
    (box,) = re.findall(rb"/MediaBox \[ *0 0 ([\d.]+) ([\d.]+)", data)
    # Points of 1/72 inch, at 300 pixels an inch.
    assert [float(side) for side in box] == pytest.approx([side * 72 / 300 for side in image.size], abs=1)


def test_mistakes_are_one_line(clips, tmp_path, capsys):
    there = sheet(clips, tmp_path / "s.png")
    capsys.readouterr()
    before = there.read_bytes()
    for arguments, message in (
        (["--out", str(there)], "exists already; --overwrite"),
        (["--out", str(tmp_path / "s.gif")], "written as .png or .pdf"),
        (["--out", str(tmp_path / "no" / "s.png")], "there is no folder"),
        (["--out", str(tmp_path / "n.png"), "--methods", "seg"], "no clips of 'seg'; there are: cfg, oseg"),
        (["--out", str(tmp_path / "n.png"), "--height", "20000"], "pixels; ask for fewer"),
        (["--out", str(tmp_path / "n.png"), "--font", str(there)], "as a font"),
    ):
        assert main(["contact-sheet", str(clips), "--quiet", *arguments]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"oseg-video: error: [^\n]+\n", error) and message in error, error
    assert there.read_bytes() == before and not (tmp_path / "n.png").exists()


def test_a_broken_clip_is_named(clips, tmp_path, capsys):
    (clips / "broken.mp4").write_bytes(b"junk")
    assert main(["contact-sheet", str(clips), "--out", str(tmp_path / "s.png"), "--quiet"]) == 1
    assert "skipped broken.mp4: " in capsys.readouterr().err
    (clips / "broken.mp4").unlink()
    *_, last = sorted((clips / "oseg-b").glob("*.png"))  # of a folder only the first image is looked at first
    last.write_bytes(b"junk")
    assert main(["contact-sheet", str(clips), "--out", str(tmp_path / "t.png"), "--quiet"]) == 1
    assert "skipped oseg-b: " in capsys.readouterr().err
    image = Image.open(tmp_path / "t.png")
    assert image.getpixel((image.width - 60, image.height - 50)) == (255, 255, 255)  # its place is empty
