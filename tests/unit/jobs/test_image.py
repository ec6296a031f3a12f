"""The image that an image-to-video clip starts from."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from oseg_video.files import FileError
from oseg_video.jobs.image import ImageError, load_image, write_image


def save(path, pixels, **options):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def test_resized_and_centre_cropped(tmp_path):
    pixels = np.zeros((20, 60, 3))
    pixels[:, 20:40] = (0, 200, 0)  # only the middle third survives the crop to a square
    start = load_image(save(tmp_path / "a.png", pixels), height=40, width=40)
    assert start.image.size == (40, 40) and start.image.mode == "RGB"
    assert start.image.getpixel((20, 20)) == (0, 200, 0)
    # Not exact at the edge, where the resampling filter sees the black beyond.
    assert all(start.image.getpixel((x, 20))[1] > 100 for x in (0, 39))
    assert start.fitted == "60 x 20 resized to 120 x 40, centre-cropped to 40 x 40"
    assert load_image(tmp_path / "a.png", height=20, width=60).fitted == "60 x 20 taken as it is"


def test_exif_orientation_is_respected(tmp_path):
    pixels = np.zeros((16, 16, 3))
    pixels[:8] = (255, 0, 0)  # stored with red above; orientation 6 turns it to the right side
    exif = Image.Exif()
    exif[0x0112] = 6
    start = load_image(save(tmp_path / "a.png", pixels, exif=exif), 16, 16)
    assert start.image.getpixel((15, 8)) == (255, 0, 0) and start.image.getpixel((0, 8)) == (0, 0, 0)
    assert start.fitted == "16 x 16 turned upright"


def test_transparency_becomes_white(tmp_path):
    pixels = np.zeros((8, 8, 4))
    pixels[:, 4:] = (0, 0, 255, 255)
    start = load_image(save(tmp_path / "a.png", pixels), 8, 8)
    assert start.image.getpixel((1, 1)) == (255, 255, 255)
    assert start.image.getpixel((6, 1)) == (0, 0, 255)
    assert start.fitted == "8 x 8 put on white"
    pixels[:, :4, 3] = 255
    assert load_image(save(tmp_path / "opaque.png", pixels), 8, 8).fitted == "8 x 8 taken as it is"
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    assert load_image(tmp_path / "p.png", 8, 8).image.getpixel((1, 1)) == (255, 255, 255)


def test_grey_and_cmyk_become_rgb(tmp_path):
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "grey16.png")
    assert load_image(tmp_path / "grey16.png", 8, 8).image.getpixel((1, 1)) == (128, 128, 128)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = load_image(tmp_path / "a.jpg", 8, 8).image.getpixel((1, 1))
    assert red > 200 and green < 60 and blue < 60


def test_what_is_no_usable_image_is_refused(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    data = save(tmp_path / "whole.png", noise).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "broken.png").write_bytes(data[:200] + bytes(100) + data[300:])
    for name, message in {
        "nothing.png": "No such file",
        "moving.gif": "is animated or has pages .2.",
        "moving.webp": "is animated or has pages .2.",
        "pages.tiff": "is animated or has pages .2.",
        "empty.png": "is empty",
        "pipe.png": "is not a file",
        "float.tiff": "floating-point pixels",
        "text.png": "not an image",
        "cut.png": "cut.png",
        "broken.png": "broken.png",
        ".": "is not a file",
    }.items():
        with pytest.raises(ImageError, match=message) as refused:
            load_image(tmp_path / name, 8, 8)
        assert "\n" not in str(refused.value)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ImageError, match="too large: more than 50 pixels"):
        load_image(save(tmp_path / "a.png", np.zeros((8, 8, 3))), 8, 8)


def test_the_content_says_what_a_file_is(tmp_path):
    save(tmp_path / "a.png", np.full((8, 8, 3), 200)).rename(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg", 8, 8).image.getpixel((1, 1)) == (200, 200, 200)


def test_a_camera_s_preview_is_no_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    red, _, blue = load_image(tmp_path / "a.jpg", 8, 8).image.getpixel((4, 4))
    assert red > 200 and blue < 60


def test_whatever_a_plugin_raises_is_one_line(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", np.zeros((8, 8, 3)))
    for error, message in [(MemoryError(), "too large for the memory"), (IndexError("x"), "is damaged: x")]:

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
        with pytest.raises(ImageError, match=message):
            load_image(path, 8, 8)


def test_an_image_keeps_its_pixels_and_its_comment(tmp_path):
    frames = torch.randint(0, 256, (1, 3, 6, 10), dtype=torch.uint8)
    write_image(tmp_path / "a.png", frames, "how it was made")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "a.png") as written:
        assert written.info["comment"] == "how it was made"
        assert np.array_equal(np.array(written), frames[0].permute(1, 2, 0).numpy())
    with pytest.raises(FileError, match="cannot write"):
        write_image(tmp_path / "none" / "a.png", frames, "")
