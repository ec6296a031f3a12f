"""What is found out before VBench starts, each by one line."""

import re
from pathlib import Path

import pytest

from oseg_video.evaluation.clips import ClipFile
from oseg_video.evaluation.vbench.checks import (
    check_dimensions,
    check_imports,
    custom_warnings,
    file_fault,
    long_clips,
    prompt_fault,
)
from oseg_video.evaluation.vbench.suite import (
    Suite,
    check_complete,
    check_surplus,
    match,
    static_candidates,
)
from oseg_video.types import OsegVideoError

SUITE = Suite(
    (
        {"prompt_en": "a fantasy landscape", "dimension": ["imaging_quality"]},
        {"prompt_en": "A fantasy landscape", "dimension": ["imaging_quality", "scene"]},
        {"prompt_en": "In a still frame, a façade", "dimension": ["temporal_flickering"]},
    )
)
STILL = "In a still frame, a façade"


def clip(name="a.mp4", *, frames=16, fps=8.0, prompt=None, seed=None):
    return ClipFile(
        path=Path(name),
        name=name,
        frames=frames,
        height=64,
        width=64,
        fps=fps,
        method="cfg",
        prompt=prompt,
        seed=seed,
        start=prompt or name,
    )


def named(prompt, count):
    return [clip(f"{prompt}-{number}.mp4") for number in range(count)]


def test_only_mp4():
    assert file_fault(clip(), ["imaging_quality"]) is None
    for name in ("b.gif", "c.png"):
        assert file_fault(clip(name), ["imaging_quality"]) == f"VBench is given mp4 files only, not {name}"


def test_too_few_frames():
    assert file_fault(clip(frames=3), ["motion_smoothness", "imaging_quality"]) is None
    short = "VBench's {} needs {} frames; a.mp4 has {}"
    assert file_fault(clip(frames=2), ["motion_smoothness"]) == short.format("motion_smoothness", 3, 2)
    assert file_fault(clip(frames=1), ["imaging_quality"]) == short.format("imaging_quality", 2, 1)


@pytest.mark.parametrize(("frames", "fps", "seen"), [(2, 8.0, 2), (8, 32.0, 2), (10, 40.0, 2)])
def test_dynamic_degree_that_would_always_be_1(frames, fps, seen):
    fault = file_fault(clip(frames=frames, fps=fps), ["dynamic_degree"])
    assert re.search(f"dynamic_degree needs 3 frames .* it sees {seen}$", fault)


def test_dynamic_degree_with_frames_enough():
    for one in (clip(frames=9, fps=32.0), clip(frames=3)):
        assert file_fault(one, ["dynamic_degree"]) is None


def test_long_clips_are_a_warning():
    short, long = clip(frames=39), clip("long.mp4", frames=40)
    (warning,) = long_clips([short, long])
    assert (
        warning.startswith("1 of 2 clips last 5 s or longer, first long.mp4 with 5.0 s")
        and "VBench-Long" in warning
    )
    assert long_clips([short]) == []


def test_custom_input_refuses_what_needs_the_suite():
    check_dimensions(["imaging_quality", "human_action"])
    with pytest.raises(OsegVideoError, match=r"color, scene only for .* suite: vbench_standard:color$"):
        check_dimensions(["imaging_quality", "color", "scene"])


def test_custom_input_needs_prompts_only_where_vbench_looks_at_them():
    assert prompt_fault(clip(), ["imaging_quality"], []) is None
    fault = prompt_fault(clip(), ["temporal_style"], [])
    assert re.search(r"temporal_style compares with the prompt.* none for a\.mp4$", fault)
    assert prompt_fault(clip(prompt="a boat"), ["temporal_style"], []) is None
    assert custom_warnings(["imaging_quality"]) == []
    (warning,) = custom_warnings(["temporal_style"])
    assert "temporal_style for own prompts" in warning


def test_human_action_needs_an_action_that_it_knows():
    riding, thinking = (clip(prompt=f"A person is {what}") for what in ("riding a bike", "thinking"))
    assert prompt_fault(riding, ["human_action"], ["riding a bike"]) is None
    fault = prompt_fault(thinking, ["human_action"], ["riding a bike"])
    assert fault.endswith("Kinetics-400; a.mp4 has 'A person is thinking'")


def test_flickering_of_own_prompts_warns_of_motion():
    assert any("static filter" in line for line in custom_warnings(["temporal_flickering"]))


def test_the_real_reason_of_a_failed_import():
    check_imports({})
    why = "ModuleNotFoundError: No module named 'detectron2'"
    with pytest.raises(
        OsegVideoError, match=r"cannot run color, scene: ModuleNot.*'detectron2'; .* --detectron2`"
    ):
        check_imports({"color": why, "scene": why, "imaging_quality": "ImportError: other"})


def test_clips_are_matched_by_manifest_or_by_name():
    clips = [
        *named("a fantasy landscape", 1),
        clip("x.mp4", prompt="A fantasy landscape", seed=9),
        clip("y.mp4", prompt="A fantasy landscape", seed=2),
        clip("In a still frame, a fac\u0327ade-10.mp4"),  # taken apart by the file system
        clip("In a still frame, a façade-9.mp4"),
        clip("a dog-0.mp4"),
        clip("a fantasy landscape-1.mp4", prompt="another"),
    ]
    found, strangers = match(SUITE, clips)
    assert [c.name for c in found["A fantasy landscape"]] == ["y.mp4", "x.mp4"]
    assert [c.name for c in found["a fantasy landscape"]] == ["a fantasy landscape-0.mp4"]
    assert [c.name[-6:] for c in found[STILL]] == ["-9.mp4", "10.mp4"]
    assert [c.name for c in strangers] == ["a dog-0.mp4", "a fantasy landscape-1.mp4"]


def test_an_incomplete_suite_is_refused_with_what_is_missing():
    clips = named("a fantasy landscape", 5) + named("A fantasy landscape", 3)
    found, _ = match(SUITE, clips)
    with pytest.raises(OsegVideoError) as refused:
        check_complete(SUITE, found, ["imaging_quality"])
    line = "2 clips are missing (prompts with too few: 1), first of 'A fantasy landscape', which has 3"
    assert line in str(refused.value) and "letter case" not in str(refused.value)
    # On a disk that does not tell case apart, all clips of one prompt replace those of the other.
    with pytest.raises(OsegVideoError, match="these prompts differ only in letter case"):
        check_complete(SUITE, match(SUITE, clips[:5])[0], ["imaging_quality"])
    with pytest.raises(OsegVideoError, match=r"7 clips are missing \(prompts with too few: 2\)") as refused:
        check_complete(SUITE, found, ["imaging_quality", "temporal_flickering"])
    assert "letter case" not in str(refused.value)
    check_complete(SUITE, match(SUITE, clips + named("A fantasy landscape", 5))[0], ["scene"])


def test_surplus_clips_and_the_static_filter_are_mentioned():
    clips = named("A fantasy landscape", 7) + named(STILL, 5) + named("a dog", 1)
    found, strangers = match(SUITE, clips)
    lines = check_surplus(found, strangers, SUITE.prompts(["temporal_flickering"]))
    assert [line.split(" ")[0] for line in lines] == ["1", "1", "temporal_flickering"]
    assert "a dog-0.mp4" in lines[0] and "first 5 count" in lines[1] and "static filter" in lines[2]
    assert static_candidates(SUITE, found, ["temporal_flickering"]) == {}
    many, none = match(SUITE, named(STILL, 25))
    assert check_surplus(many, none, [STILL]) == []
    assert list(static_candidates(SUITE, many, ["temporal_flickering", "scene"])) == [STILL]
    assert static_candidates(SUITE, many, ["scene"]) == {}
