"""A Chromium, and pages of painted clips to open in it from disk."""

import shutil

import pytest
import torch
from PIL import Image

from oseg_video.comparison.page import Gap, write_page
from oseg_video.evaluation.clips import find_clips
from oseg_video.media import write_clip
from tests.drawn import write_manifest

METHODS = ("cfg", "stg", "oseg")
MARKUP = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> <!--<script>"
PROMPTS = ("a red circle", "a blue square", MARKUP)
FRAMES, FPS, SIZE = 24, 12, 32
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def paint(shift):
    """A clip whose frames get brighter; `shift` levels brighter than that of another method."""
    levels = torch.arange(FRAMES) * 8 + shift
    return levels.to(torch.uint8)[:, None, None, None].expand(-1, 3, SIZE, SIZE).contiguous()


@pytest.fixture(scope="session")
def painted(tmp_path_factory):
    """A folder of clips of every prompt and method but one, seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("report") / "clips"
    folder.mkdir()
    first = {}
    for shift, method in enumerate(METHODS):
        path = folder / f"{method}.mp4"
        write_clip(path, paint(20 * shift), FPS, format="mp4")
        first[method] = path
    for number, prompt in enumerate(PROMPTS):
        for seed in (0, 1):
            for method in METHODS:
                if (number, seed, method) == (1, 1, "stg"):
                    continue
                path = folder / f"{method} {number}#{seed}%.mp4"  # what a URL must not take for its own
                shutil.copy(first[method], path)
                write_manifest(path, prompts=[prompt], seeds=[seed], guidance=method, steps=7)
    for path in first.values():
        path.unlink()
    return folder


def evaluated(**values):
    """Results as `as_json` has them: of every method a value, and its difference to cfg."""
    result = {"name": "score", "per_clip": {}, "details": {}, "clips": 6}
    return {
        "methods": {method: {"clips": 6} for method in values},
        "results": {m: [{**result, "value": v, "interval": [v - 0.1, v + 0.1]}] for m, v in values.items()},
        "better": {"score": "higher"},
        "differences": [
            {
                **{"name": "score", "method": m, "baseline": "cfg", "value": v - values["cfg"], "pairs": 6},
                "interval": [v - values["cfg"] - 0.2, v - values["cfg"] + 0.2],
            }
            for m, v in values.items()
            if m != "cfg"
        ],
        "baselines": {method: "cfg" for method in values if method != "cfg"},
        "reported": {"source": MARKUP, "values": {"oseg": {"score": 1.25}}},
        "warnings": [MARKUP],
        "skipped": {},
        "failed": {},
    }


@pytest.fixture(scope="session")
def page_file(painted):
    """The page of `painted`, with metric values, a failed clip, and markup wherever text can come from."""
    found = find_clips([painted])
    path = painted.parent / "index.html"
    gap = Gap("a blue square", None, 1, "stg", f"no memory {MARKUP}")
    results = evaluated(cfg=1.0, stg=1.1, oseg=1.5)
    write_page(path, found.clips, METHODS, gaps=[gap], results=results)
    return path


@pytest.fixture(scope="session")
def images_file(tmp_path_factory):
    """The page of one image for each method, in one grey each, and its row's second seed."""
    folder = tmp_path_factory.mktemp("images") / "clips"
    folder.mkdir()
    for shade, method in enumerate(METHODS):
        for seed in (0, 1):
            path = folder / f"{method} #{seed}%.png"
            Image.new("RGB", (SIZE, SIZE), (60 * shade + 20 * seed,) * 3).save(path)
            write_manifest(path, prompts=[""], seeds=[seed], guidance=method, frames=1)
    path = folder.parent / "index.html"
    write_page(path, find_clips([folder]).clips, METHODS)
    return path


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium found (looked for {', '.join(CHROMIUMS)})")
    with playwright.sync_playwright() as tool:
        # Chromium's sandbox needs rights that containers do not give; the pages here are our own.
        with tool.chromium.launch(executable_path=program, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def view(browser):
    """Opens a page from disk; in the end nothing may have been said, asked or fetched from elsewhere."""
    contexts, trouble = [], []

    def open_page(path, width=1200, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on("requestfailed", lambda request: trouble.append(f"{request.url}: {request.failure}"))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url),
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [line for line in trouble if "ERR_ABORTED" not in line] == []
