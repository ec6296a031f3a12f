"""The page in a real Chromium, opened from disk."""

import dataclasses
import shutil

import pytest
import torch

from oseg_video.comparison.page import write_page
from oseg_video.evaluation.clips import find_clips
from oseg_video.probing import page as probe_page
from oseg_video.probing.drawing import draw
from oseg_video.probing.landscape import Landscape
from oseg_video.probing.result import AttentionRow, EffectRow, ProbeResult
from tests.report.conftest import FPS, FRAMES, MARKUP, METHODS, evaluated

READY = "[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && !v.seeking)"
TIMES = "[...document.querySelectorAll('video')].map(v => v.currentTime)"
VISIBLE_ROWS = "document.querySelectorAll('.row:not([hidden])').length"


def opened(view, path, **options):
    """The page with all its videos loaded."""
    page = view(path, **options)
    page.wait_for_function(f"document.querySelectorAll('video').length > 0 && {READY}")
    return page


def shown_frames(page):
    page.wait_for_function(READY)
    return {int(time * FPS) for time in page.evaluate(TIMES)}


def test_all_videos_play_in_step(view, page_file):
    page = opened(view, page_file)
    page.keyboard.press("Space")
    page.wait_for_function("player.running")
    spreads, times = [], []
    for _ in range(30):
        now = page.evaluate(f"({{on: player.running, times: {TIMES}}})")
        if now["on"]:  # else it starts from the front again
            spreads.append(max(now["times"]) - min(now["times"]))
            times.append(now["times"][0])
        page.wait_for_timeout(50)
    assert len(page.evaluate(TIMES)) >= 9 and len(spreads) > 10
    assert len(set(times)) > 5  # they do play
    assert sorted(spreads)[len(spreads) // 2] < 1 / FPS, spreads
    page.keyboard.press("Space")
    assert len(shown_frames(page)) == 1
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")


def test_a_video_that_falls_behind_catches_up(view, page_file):
    page = opened(view, page_file)
    page.locator("#speed").select_option("0.25")
    page.get_by_role("button", name="play", exact=True).click()
    page.wait_for_function("player.running")
    page.evaluate("document.querySelector('video').currentTime = 1.6")
    page.wait_for_function(f"player.running && (t => Math.max(...t) - Math.min(...t) < {1 / FPS})({TIMES})")


def test_steps_and_scrubbing_show_the_same_frame_everywhere(view, page_file):
    page = opened(view, page_file)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shown_frames(page) == {2} and page.locator("#frame").inner_text() == f"3/{FRAMES}"
    page.keyboard.press("ArrowLeft")
    assert shown_frames(page) == {1}
    page.keyboard.press("End")
    assert shown_frames(page) == {FRAMES - 1}
    page.get_by_role("button", name="one frame forward").click()
    assert shown_frames(page) == {0}
    box = page.locator("#scrub").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    (frame,) = shown_frames(page)
    assert abs(frame - (FRAMES - 1) / 2) <= 1
    page.keyboard.press("ArrowRight")  # the slider has the focus now
    assert shown_frames(page) == {frame + 1}


def test_filters_by_prompt_and_method(view, page_file):
    page = opened(view, page_file)
    assert page.evaluate(VISIBLE_ROWS) == 6
    page.locator("#search").fill("SQUARE blue")
    assert page.locator(".row:visible h2").all_inner_texts() == ["a blue squareseed 0", "a blue squareseed 1"]
    page.locator("#search").fill("circle seed 1")
    assert page.evaluate(VISIBLE_ROWS) == 1
    page.locator("#search").fill("<img")
    assert page.evaluate(VISIBLE_ROWS) == 2
    page.locator("#search").fill("no such")
    assert page.evaluate(VISIBLE_ROWS) == 0 and page.locator("#nothing").is_visible()
    page.locator("#search").fill("")
    page.get_by_label("stg", exact=True).first.uncheck()
    assert page.locator(".cell:visible .method").all_inner_texts() == ["cfg", "oseg"] * 6
    assert page.locator("[data-method=stg] video").count() == 0


def test_a_prompt_is_text(view, page_file):
    page = opened(view, page_file)
    assert f"{MARKUP}seed 1" in page.locator(".row h2").all_inner_texts()
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    assert page.locator(".missing").inner_text() == f"failed: no memory {MARKUP}"
    assert f"Warning: {MARKUP}" in page.locator(".notes").inner_text()
    page.wait_for_timeout(300)  # `view` fails the test if a dialog has opened


def left_of(page, method):
    return page.locator(f".row >> nth=0 >> [data-method={method}]").bounding_box()["x"]


def test_holding_swaps_two_methods_in_place(view, page_file):
    page = opened(view, page_file)
    before = {method: left_of(page, method) for method in METHODS}
    swapped = {**before, "cfg": before["oseg"], "oseg": before["cfg"]}
    page.keyboard.down("f")
    assert {method: left_of(page, method) for method in METHODS} == swapped
    page.keyboard.up("f")
    assert {method: left_of(page, method) for method in METHODS} == before
    page.locator(".row >> nth=0 >> [data-method=stg] .screen").hover()
    page.mouse.down()
    assert left_of(page, "stg") == before["cfg"] and left_of(page, "oseg") == before["oseg"]
    page.mouse.up()
    assert {method: left_of(page, method) for method in METHODS} == before


def test_the_difference_view_shows_how_far_apart_two_clips_are(view, page_file):
    page = opened(view, page_file)
    page.locator("#gain").fill("1")
    page.keyboard.press("d")
    canvas = page.locator(".row >> nth=0 >> [data-method=oseg] canvas")
    canvas.wait_for()
    page.wait_for_function(READY)
    page.evaluate("scrollTo(0, 0)")
    # The pixels of a canvas with a file's video cannot be read by the page: take a image of it.
    level = middle_level(page, canvas)
    assert abs(level - 40) <= 4
    assert page.locator("[data-method=cfg] canvas").count() == 0
    page.locator("#gain").fill("3")
    page.wait_for_timeout(200)
    assert abs(middle_level(page, canvas) - 120) <= 12
    page.locator("#first").select_option("oseg")
    page.wait_for_function("!document.querySelector('[data-method=oseg] canvas')")
    assert page.locator("[data-method=cfg] canvas").count() > 0
    page.locator("#difference").click()
    assert page.locator("canvas").count() == 0


def middle_level(page, locator):
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(locator.screenshot())).convert("L")
    return image.getpixel((image.width // 2, image.height // 2))


def test_metric_values_carry_intervals_and_verdicts(view, page_file):
    page = opened(view, page_file)
    row = page.locator("tr[data-method=oseg]").inner_text()
    assert "1.50 [1.40, 1.60]" in row and "+0.50 [+0.30, +0.70]\nto cfg, better" in row
    assert "reported 1.25" in row and f"Reported: {MARKUP}" in page.locator(".notes").inner_text()
    assert "better" not in page.locator("tr[data-method=stg]").inner_text()
    assert "reported" not in page.locator("tr[data-method=stg]").inner_text()
    marks = page.locator(".plot svg circle").evaluate_all("all => all.map(c => Number(c.getAttribute('cx')))")
    first, second, third = marks
    assert (second - first) / (third - first) == pytest.approx(0.2)


def test_names_of_methods_stay_inside_the_plots(view, painted, tmp_path):
    long = "oseg (perturb_scale=1.0, blocks=3, rule=published)"
    shutil.copytree(painted, tmp_path / "clips")
    clips = find_clips([tmp_path / "clips"]).clips
    found = [dataclasses.replace(clip, method=long) if clip.method == "oseg" else clip for clip in clips]
    results = evaluated(**{"cfg": 1.0, "stg": 1.1, long: 1.5})
    write_page(tmp_path / "index.html", found, ["cfg", "stg", long], results=results)
    page = opened(view, tmp_path / "index.html")
    boxes = page.locator(".plot svg text").evaluate_all("all => all.map(t => t.getBBox().x)")
    assert len(boxes) >= 5 and min(boxes) >= 0
    assert page.locator(".plot svg text title").last.text_content() == long


def test_settings_of_a_clip(view, page_file):
    page = opened(view, page_file)
    details = page.locator(".cell details").first
    assert details.locator("dl").count() == 0
    details.locator("summary").click()
    details.locator("dl").wait_for()
    text = details.inner_text()
    assert "steps\n7" in text and "guidance\ncfg" in text and "size\n32 \u00d7 32" in text


def test_long_names_stay_inside_a_narrow_screen(view, painted, tmp_path):
    method = "mochi-1-preview/oseg (perturb_scale=1.0, blocks=3, rule=published)"
    shutil.copytree(painted, tmp_path / "clips")
    found = [
        dataclasses.replace(
            clip,
            method=method if clip.method == "oseg" else clip.method,
            settings={**clip.settings, "image": f"{'long_name_of_an_image' * 5}.png"},
        )
        for clip in find_clips([tmp_path / "clips"]).clips
    ]
    results = {**evaluated(**{"cfg": 1.0, "stg": 1.1, method: 1.5}), "skipped": {"x" * 200: "damaged"}}
    write_page(tmp_path / "index.html", found, ["cfg", "stg", method], results=results)
    page = opened(view, tmp_path / "index.html", width=320)
    page.locator(".cell details summary").first.click()
    page.locator(".cell dl").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    names, table = page.locator("tr[data-method=cfg] th"), page.locator(".scroll")
    assert names.bounding_box()["width"] < table.bounding_box()["width"] / 2  # the values can be seen


def test_one_clip_is_heard_and_at_first_none(view, page_file, tmp_path):
    shutil.copytree(page_file.parent / "clips", tmp_path / "clips")
    clips = [dataclasses.replace(clip, sound=True) for clip in find_clips([tmp_path / "clips"]).clips]
    write_page(tmp_path / "index.html", clips, METHODS)
    page = opened(view, tmp_path / "index.html")
    heard = "[...document.querySelectorAll('video')].map((v, i) => v.muted ? -1 : i).filter(i => i >= 0)"
    buttons = page.get_by_role("button", name="sound", exact=True)
    assert page.evaluate(heard) == []
    buttons.nth(1).click()
    assert page.evaluate(heard) == [1]
    buttons.nth(0).click()
    assert page.evaluate(heard) == [0] and buttons.nth(1).get_attribute("aria-pressed") == "false"
    buttons.nth(0).click()
    assert page.evaluate(heard) == []


@pytest.mark.parametrize(("width", "columns"), [(1200, 3), (360, 2), (320, 1)])
def test_nothing_sticks_out_of_a_narrow_screen(view, page_file, width, columns):
    page = opened(view, page_file, width=width, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    lefts = page.locator(".row >> nth=0 >> .cell").evaluate_all(
        "cells => cells.map(c => c.getBoundingClientRect().left)"
    )
    assert len(set(lefts)) == columns
    edge = page.locator("#transport > :last-child").bounding_box()
    assert edge["x"] + edge["width"] <= width and edge["y"] + edge["height"] <= 740


def test_light_and_dark(view, page_file):
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = (view(page_file, color_scheme=scheme).evaluate(colour) for scheme in ("light", "dark"))
    assert light != dark
    page = view(page_file, color_scheme="dark")
    page.locator("#theme").click()
    assert page.evaluate(colour) == light


def test_five_hundred_clips_load_only_what_is_in_sight(view, painted):
    clips = list(find_clips([painted]).clips)
    many = [
        type(clip)(**{**vars(clip), "prompt": f"prompt {number}", "start": f"prompt {number}"})
        for number in range(167)
        for clip in clips[0::6]
    ]
    path = painted.parent / "many.html"
    write_page(path, many, METHODS)
    page = opened(view, path)
    assert page.locator(".row").count() == 167 and len(many) >= 500
    assert page.locator("video").count() < 40
    page.locator(".row").last.scroll_into_view_if_needed()
    page.locator(".row").last.locator("video").first.wait_for()
    page.wait_for_function(
        "!document.querySelector('.row video')?.closest('.row').matches('[data-row=\"0\"]')"
    )
    assert page.locator("video").count() < 40
    page.keyboard.press("ArrowRight")
    assert shown_frames(page) == {1}


def test_images_need_no_playback(view, images_file):
    page = view(images_file)
    page.wait_for_function(
        "[...document.querySelectorAll('.screen img')].filter(i => i.naturalWidth).length == 6"
    )
    assert not page.locator("#transport").is_visible() and page.locator("video").count() == 0
    assert page.locator("#facts").inner_text() == "6 images · 2 rows · 3 methods"
    page.keyboard.press("d")
    page.wait_for_function("document.querySelectorAll('canvas.difference').length == 4")
    page.keyboard.press("d")
    before = {method: left_of(page, method) for method in METHODS}
    page.keyboard.down("f")
    assert left_of(page, "cfg") == before["oseg"]
    page.keyboard.up("f")


def test_a_slider_moves_over_two_images_in_every_row(view, images_file):
    page = view(images_file)
    page.keyboard.press("s")
    over = page.locator("[data-method=cfg] .over")
    assert over.count() == 2 and page.locator(".over").count() == 2
    box = page.locator("[data-method=cfg] .screen").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert page.locator("#cut").input_value() == "25"
    cuts = page.evaluate("[...document.querySelectorAll('.over')].map(i => getComputedStyle(i).clipPath)")
    assert cuts == ["inset(0px 0px 0px 25%)"] * 2
    page.locator("#second").select_option("stg")
    assert page.evaluate("[...document.querySelectorAll('.over')].every(i => i.src.includes('stg'))")
    page.mouse.down()  # does not flip there
    assert left_of(page, "cfg") < left_of(page, "stg")
    page.mouse.up()
    page.keyboard.press("s")
    assert page.locator(".over").count() == 0


def test_videos_have_no_slider(view, page_file):
    page = opened(view, page_file)
    page.keyboard.press("s")
    assert not page.locator("#sliding").is_visible() and page.locator(".over").count() == 0


def probe_of_two_blocks():
    blocks, levels, kinds = (0, 1), (0.9, 0.1), ("as it is", "oseg 1", "oseg inf")
    names = ("entropy", "energy", "covariance_norm", "curvature", "orthogonal")
    attention = [
        AttentionRow(block, level, kind, {name: [1.0 + block] for name in names})
        for block in blocks
        for level in levels
        for kind in kinds
    ]
    effects = [EffectRow(block, level, 0.1 + block, 0.5) for block in blocks for level in levels]
    change = "what of the queries is orthogonal to the token's key smoothed"
    paths = {block: f"transformer_blocks.{block}" for block in blocks}
    return ProbeResult("mochi", "oseg", change, ("x",), 0, paths, tuple(attention), tuple(effects), 0.5, 9)


def test_pages_of_probe_and_landscape_fit_a_phone(view, tmp_path):
    maps = {kind: torch.rand(16, 4, 4) for kind in ("as it is", "oseg 3")}
    landscape = Landscape("transformer_blocks.3", 0.5, (0, 2, 2), maps, maps)
    pages = {
        "landscape": draw(landscape, ".html").decode(),
        "probe": probe_page.page_text(probe_of_two_blocks()),
    }
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text)
        page = view(tmp_path / f"{name}.html", width=400, height=740, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 400, name
        assert page.locator("svg").count() == text.count("<svg") > 0
