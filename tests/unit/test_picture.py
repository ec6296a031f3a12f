"""The picture that an image-to-video clip starts from."""

import numpy as np
import pytest
from PIL import Image

from oseg_video.runtime.picture import PictureError, load_picture


def save(path, pixels, **options):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def test_resized_and_centre_cropped(tmp_path):
    pixels = np.zeros((20, 60, 3))
    pixels[:, 20:40] = (0, 200, 0)  # only the middle third survives the crop to a square
    picture = load_picture(save(tmp_path / "a.png", pixels), height=40, width=40)
    assert picture.image.size == (40, 40) and picture.image.mode == "RGB"
    assert picture.image.getpixel((20, 20)) == (0, 200, 0)
    # Not exact at the edge, where the resampling filter sees the black beyond.
    assert all(picture.image.getpixel((x, 20))[1] > 100 for x in (0, 39))
    assert picture.fitted == "60 x 20 resized to 120 x 40, centre-cropped to 40 x 40"


def test_exif_orientation_is_respected(tmp_path):
    pixels = np.zeros((16, 16, 3))
    pixels[:8] = (255, 0, 0)  # stored with red above; orientation 6 turns it to the right side
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = load_picture(save(tmp_path / "a.png", pixels, exif=exif), 16, 16)
    assert picture.image.getpixel((15, 8)) == (255, 0, 0) and picture.image.getpixel((0, 8)) == (0, 0, 0)


def test_transparency_becomes_white(tmp_path):
    pixels = np.zeros((8, 8, 4))
    pixels[:, 4:] = (0, 0, 255, 255)
    picture = load_picture(save(tmp_path / "a.png", pixels), 8, 8)
    assert picture.image.getpixel((1, 1)) == (255, 255, 255)
    assert picture.image.getpixel((6, 1)) == (0, 0, 255)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    assert load_picture(tmp_path / "p.png", 8, 8).image.getpixel((1, 1)) == (255, 255, 255)


def test_grey_and_cmyk_become_rgb(tmp_path):
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "grey16.png")
    assert load_picture(tmp_path / "grey16.png", 8, 8).image.getpixel((1, 1)) == (128, 128, 128)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = load_picture(tmp_path / "a.jpg", 8, 8).image.getpixel((1, 1))
    assert red > 200 and green < 60 and blue < 60


def test_what_is_no_usable_picture_is_refused(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    data = save(tmp_path / "whole.png", noise).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "broken.png").write_bytes(data[:200] + bytes(100) + data[300:])
    for name, message in {
        "nothing.png": "No such file",
        "moving.gif": "is animated .2 frames.",
        "text.png": "not a picture",
        "cut.png": "cut.png",
        "broken.png": "broken.png",
        ".": "Is a directory",
    }.items():
        with pytest.raises(PictureError, match=message) as refused:
            load_picture(tmp_path / name, 8, 8)
        assert "\n" not in str(refused.value)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(PictureError, match="too large: more than 50 pixels"):
        load_picture(save(tmp_path / "a.png", np.zeros((8, 8, 3))), 8, 8)
