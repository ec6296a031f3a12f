"""The parts of the study: statistics over pairs, searches with equal budgets, and the control's length."""

from __future__ import annotations

import importlib
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from study.bench import Rows, Setting, _diversity
from study.questions import winners
from study.search import arms_of, search_all
from study.statistics import Statistics, score

from oseg_video.embedded.tasks import ONE_SHAPE, TWO_SHAPES
from oseg_video.evaluation.features.frechet import Moments
from oseg_video.guidance.flat import guidance_from_flat
from oseg_video.guidance.methods import base
from oseg_video.guidance.queries import oseg_queries
from oseg_video.guidance.reuse import Reuse
from oseg_video.types import TokenGrid

PARTS = TWO_SHAPES.parts
METHODS = Path(__file__).parents[3] / "scripts" / "study" / "methods.yaml"
NONE = {"guidance": "cfg", "guidance_scale": 1}


def rows(right: torch.Tensor, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    clips = len(right)
    return Rows(
        PARTS,
        right=right[:, None].expand(-1, len(PARTS)).clone(),
        features=torch.randn(clips, 4, generator=generator).half(),
        flicker=torch.rand(clips, generator=generator),
        diversity=torch.rand(clips // 2, generator=generator).repeat_interleave(2),
        passes=torch.ones(clips),
    )


def statistics(clips: int) -> Statistics:
    generator = torch.Generator().manual_seed(9)
    captions = [f"caption {place // 2}" for place in range(clips)]
    return Statistics(clips, captions, Moments.of(torch.randn(500, 4, generator=generator)))


class PlantedBench:
    """A clip is right with a chance that depends on the setting; what was asked for is counted."""

    def __init__(self, best: dict) -> None:
        self.best, self.asked = best, {}

    def captions(self, seed: int, places: range) -> list[str]:
        return [f"caption {place // 2} of {seed}" for place in places]

    def rows(self, setting: Setting, clips: int, label: str) -> Rows:
        self.asked[label] = max(clips, self.asked.get(label, 0))
        chance = 0.9 if {**setting.guidance, **self.best} == dict(setting.guidance) else 0.3
        generator = torch.Generator().manual_seed(setting.seed)
        return rows(torch.rand(clips, generator=generator) < chance)


def test_a_search_finds_the_planted_arm_and_keeps_to_its_budget() -> None:
    bench = PlantedBench({"blocks": [3], "stg_scale": 0.5})
    axes = {"guidance": "stg", "blocks": "all", "stg_scale": [0.25, 0.5], "guidance_scale": 1}
    arms = arms_of("stg", axes, 20, blocks=5)
    assert len(arms) == 10
    setting = Setting(guidance=NONE, steps=2, seed=5)
    found = search_all(bench, {"stg": arms}, NONE, setting, 400, statistics(8))["stg"]
    assert (found.guidance["blocks"], found.guidance["stg_scale"]) == ([3], 0.5)
    assert 100 < sum(bench.asked.values()) <= 400
    assert all(count % 2 == 0 for count in bench.asked.values())


def test_differences_are_paired_and_intervals_are_over_prompts() -> None:
    """Right in the same clips and a few more: the difference is certain, the values are not."""
    chance = torch.rand(200, generator=torch.Generator().manual_seed(1)).repeat_interleave(2)
    less, more = rows(chance < 0.5), rows(chance < 0.6, seed=1)
    counted = statistics(400)
    difference = counted.differences(more, less)["all"]
    assert difference.value == pytest.approx(
        float((chance < 0.6).double().mean() - (chance < 0.5).double().mean())
    )
    assert difference.low > 0
    value = counted.values(less)["all"]
    # 200 prompts, not 400 clips: sqrt(p (1 - p) / 200) on each side, times 1.96.
    assert value.high - value.low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.2)
    assert counted.differences(less, less)["frechet"] == (0, 0, 0)


def test_one_clip_more_than_the_other_is_no_difference_for_sure() -> None:
    """A bootstrap's interval of a share would have no width, or leave 0 out by chance."""
    none = torch.zeros(200, dtype=torch.bool)
    one = none.clone()
    one[7] = True
    for more, less in ((one, none), (none, one), (none, none)):
        found = statistics(200).differences(rows(more), rows(less))
        assert found["all"].low < 0 < found["all"].high
        assert found["score"].low <= 0 <= found["score"].high


def test_clips_of_a_caption_that_was_drawn_twice_count_together() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(2)).double().repeat_interleave(4)
    once = statistics(200)
    twice = replace(once, captions=[f"caption {place // 4}" for place in range(200)])

    def width(counted: Statistics) -> float:
        found = counted.mean(values)
        return found.high - found.low

    assert width(twice) == pytest.approx(2**0.5 * width(once), rel=0.1)


def test_a_distance_is_a_share_of_that_between_the_clips_of_a_prompt() -> None:
    ends = torch.tensor([0.0, 2.0] * 4)[:, None].half()
    exact = replace(rows(torch.ones(8, dtype=torch.bool)), features=ends)
    assert statistics(8).distance(exact, exact) == (0, 0, 0)
    moved = replace(exact, features=ends + torch.tensor([[1.0], [3.0]] * 4).half())
    assert statistics(8).distance(moved, exact) == (1, 1, 1)  # mean of 1 and 3, by 2


def test_the_score_is_the_share_of_the_right_words() -> None:
    right = torch.zeros(4, len(PARTS), dtype=torch.bool)
    right[0, PARTS.index("colour")] = right[0, PARTS.index("motion")] = right[1, PARTS.index("all")] = True
    assert score(replace(rows(right[:, 0]), right=right)).tolist() == [0.5, 0, 0, 0]
    one = Rows(**{**vars(rows(right[:, 0])), "parts": ONE_SHAPE.parts, "right": right[:, :4]})
    assert score(one).tolist() == [1 / 3, 0, 0, 0]  # count, which is colour there, is the only one right


def test_diversity_is_the_distance_of_the_clips_of_a_prompt() -> None:
    latents = torch.tensor([[0.0, 0.0], [3.0, 3.0], [1.0, 1.0], [1.0, 1.0]])[:, :, None, None, None]
    assert _diversity(latents).tolist() == [3, 3, 0, 0]


def test_every_setting_has_rows_of_its_own() -> None:
    one = Setting(guidance=NONE, steps=2, seed=5)
    others = [
        Setting(guidance=NONE, steps=3, seed=5),
        Setting(guidance=NONE, steps=2, seed=6),
        Setting(guidance={**NONE, "guidance_scale": 2}, steps=2, seed=5),
        Setting(guidance=NONE, steps=2, seed=5, reuse=Reuse(refresh={"uncond": 2})),
        Setting(guidance=NONE, steps=2, seed=5, reuse=Reuse(cache=0.1)),
    ]
    keys = [setting.key("a") for setting in (one, *others)] + [one.key("b")]
    assert len(set(keys)) == len(keys) and one.key("a") == Setting(guidance=dict(NONE), steps=2, seed=5).key(
        "a"
    )


def test_a_fraction_of_a_grid_is_balanced() -> None:
    axes = {"guidance": "seg", "blocks": "all", "seg_scale": [1, 2, 4, 8], "blur_sigma": [1, 5, 9]}
    arms = [arm.settings for arm in arms_of("seg", {**axes, "guidance_scale": 1}, 20, blocks=5)]
    names = ("blocks", "seg_scale", "blur_sigma")
    counts = {
        pair: Counter((str(arm[pair[0]]), arm[pair[1]]) for arm in arms)
        for pair in itertools.combinations(names, 2)
    }
    assert len(arms) == 20 and set(counts["blocks", "seg_scale"].values()) == {1}
    assert all({*count.values()} <= {1, 2} for count in counts.values())
    assert [len(count) for count in counts.values()] == [20, 15, 12]
    assert len(arms_of("seg", {**axes, "blur_sigma": 1}, 20, blocks=5)) == 20


def test_every_arm_of_the_study_is_a_method() -> None:
    recipe = yaml.safe_load(METHODS.read_text())
    for group in ("plain", "alone", "with text"):
        for label, axes in recipe[group].items():
            arms = arms_of(label, axes, recipe["arms"], blocks=5)
            assert label == "none" or len(arms) > 1
            for arm in arms:
                settings = dict(arm.settings)
                guidance_from_flat(settings.pop("guidance"), settings)
    found = {
        group: {label: {"guidance": NONE} for label in recipe[group] if label != "none"}
        for group in recipe
        if group != "arms"
    }
    assert [label for _, label, _ in winners(found)][:3] == ["none", "cfg", "apg"]


def test_the_control_moves_each_query_as_far_as_oseg_does_and_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "METHODS", {})  # it is a method of the study alone
    controls = importlib.import_module("study.controls")
    grid = TokenGrid(2, 3, 4)
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(2, 3, 24, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.manual_seed(4)
    change = controls.MoveAnywhere(5.0)(query, key, grid) - query
    osegs = oseg_queries(query, key, grid, blur_sigma=5.0) - query
    torch.testing.assert_close(change.norm(dim=-1), osegs.norm(dim=-1))
    assert torch.cosine_similarity(change, osegs, dim=-1).mean().abs() < 0.1
