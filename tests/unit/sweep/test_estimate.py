"""The dry run of a sweep: what it counts, and what its hours rest on."""

import dataclasses
import json
import re

import pytest

from oseg_video.cli import main
from oseg_video.config.manifest import read_manifest
from oseg_video.jobs.loading import hub
from oseg_video.sweeps.engines.local import InProcess
from oseg_video.sweeps.estimate import describe, estimate
from oseg_video.sweeps.recipe import read_sweep
from oseg_video.sweeps.records import record
from oseg_video.sweeps.run import run_sweep, survey
from oseg_video.sweeps.stores import open_store
from oseg_video.sweeps.table import SweepItem, build_table, plan_variations
from tests.sweeps import GIF, table, write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def variations(tmp_path):
    return plan_variations(read_sweep(write_recipe(tmp_path)))


def test_passes_are_those_of_the_clips(variations):
    found = estimate(variations, (), seconds_per_pass=2)
    cfg, oseg = found.shares
    assert (cfg.clips, cfg.todo, cfg.steps) == (4, 4, 2)
    assert cfg.passes == (4, 4)  # two a step
    assert oseg.passes == (5, 5)  # and half of one, from block 3 of 6
    (hours,) = found.hours
    assert hours.clips == 8 and hours.hours == pytest.approx([4 * (4 + 5) * 2 / 3600] * 2)
    assert hours.basis.startswith("assumed: 2 s a pass") and found.unknown == 0
    unknown = estimate(variations, ())
    assert unknown.hours == () and unknown.unknown == 8


def test_finished_clips_give_the_time_of_a_pass(tmp_path, variations, painter):
    items = build_table(variations)
    store = open_store(str(tmp_path / "out"))
    run_sweep(items[:3], store, InProcess(store))  # three of CFG, half a second each
    records, _ = survey(items, open_store(str(tmp_path / "out")))
    found = estimate(variations, records, seconds_per_pass=1e9)
    assert [(share.done, share.todo) for share in found.shares] == [(3, 1), (0, 4)]
    (hours,) = found.hours
    # Half a second for 4 passes; one clip of 4 passes and four of 5 are left.
    assert hours.hours[0] == pytest.approx((4 + 4 * 5) * 0.5 / 4 / 3600)
    assert hours.basis == "measured: 3 finished clips of the same model and size took 0.125 s a pass"


def test_empty_prompts_and_others_are_counted_apart(tmp_path):
    size = {"frames": 1, "height": 64, "width": 64, "steps": 2}
    prompts = ["", "a red circle"]
    recipe = write_recipe(tmp_path, prompts=prompts, methods=["cfg"], models=["sdxl"], settings=size)
    empty, worded = variations = plan_variations(read_sweep(recipe))
    assert (empty.job.prompts, worded.job.prompts) == (("",), ("a red circle",))
    one = dataclasses.replace(empty.job, seeds=(0,))
    records = [record(SweepItem("ab", "sdxl", "cfg", one, "image"), "done", seconds=1.0)]
    found = estimate(variations, records)
    assert [(share.done, share.todo) for share in found.shares] == [(1, 1), (0, 2)]


def test_refreshed_branches_are_an_axis_like_others(tmp_path):
    methods = {
        "each": {"guidance": "oseg"},
        "second": {"guidance": "oseg", "refresh": {"uncond": 2, "perturbed": 3}},
        "cached": {"guidance": "oseg", "cache": 0.1},
    }
    settings = {**GIF, "steps": 4}
    variations = plan_variations(read_sweep(write_recipe(tmp_path, methods=methods, settings=settings)))
    shares = estimate(variations, (), seconds_per_pass=1).shares
    # Steps 0, 2, 3 and 0, 3 of the unconditional and the perturbed branch; or step 0, and the first block.
    assert [share.passes for share in shares] == [(10, 10), (4 + 3 + 1, 4 + 3 + 1), (5 + 2 / 6, 10)]
    assert len({item.key for item in build_table(variations)}) == 12


def test_the_engine_runs_the_passes_that_are_counted(tmp_path):
    """Clips that are sampled, not painted."""
    methods = {
        "cfg": {},
        "oseg": {"refresh": {"uncond": 2, "perturbed": 3}},
    }
    settings = {**GIF, "steps": 5}
    variations = plan_variations(read_sweep(write_recipe(tmp_path, methods=methods, settings=settings)))
    items = build_table(variations)
    store = open_store(str(tmp_path / "out"))
    run_sweep(items[::4], store, InProcess(store))
    for item, share in zip(items[::4], estimate(variations, ()).shares, strict=True):
        ran = read_manifest(tmp_path / "out" / item.file).passes["block_passes"]
        assert share.method == item.method and share.passes == (ran, ran)


def test_failed_items_are_to_do_only_if_they_are_retried(tmp_path, variations, painter, monkeypatch):
    monkeypatch.setattr(painter, "make_clip", lambda *_: 1 / 0)
    items = build_table(variations)
    store = open_store(str(tmp_path / "out"))
    run_sweep(items[:3], store, InProcess(store))
    records, _ = survey(items, open_store(str(tmp_path / "out")))
    assert [share.todo for share in estimate(variations, records).shares] == [1, 4]
    assert [share.todo for share in estimate(variations, records, retry_failed=True).shares] == [4, 4]


def test_noise_levels_give_a_span(tmp_path):
    methods = {"late": {"guidance": "oseg", "oseg_scale": {"breakpoints": {1.0: 1, 0.5: 0}}}}
    found = estimate(
        plan_variations(read_sweep(write_recipe(tmp_path, methods=methods))), (), seconds_per_pass=1
    )
    assert found.shares[0].passes == (4, 5)
    assert found.hours[0].hours[0] < found.hours[0].hours[1]
    assert "16 to 20" in "\n".join(describe(found))


def test_the_command_makes_nothing(capsys, tmp_path):
    path = str(write_recipe(tmp_path))
    assert main(["sweep", path, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("8 clips: 0 done, 0 failed, 8 to do\n")
    assert "no estimate for 8 clips: none is finished yet; --seconds-per-pass X assumes a time" in output
    assert main(["sweep", path, "--dry-run", "--json", "--seconds-per-pass", "1", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["hours"][0]["clips"] == 8
    assert not (tmp_path / "out").exists()


def test_a_family_is_counted_at_full_size_where_the_hub_is_out_of_reach(tmp_path, monkeypatch):
    def fail(*_):
        raise hub.HubError("cannot reach the hub")

    monkeypatch.setattr(hub, "find_commit", fail)
    settings = {"frames": 9, "height": 64, "width": 64, "steps": 4}
    recipe = write_recipe(tmp_path, models=["ltx"], methods=["cfg"], settings=settings)
    with pytest.raises(hub.HubError):
        table(tmp_path, models=["ltx"], methods=["cfg"], settings=settings)
    from oseg_video.sweeps.launch import dry_run

    (share,) = dry_run(read_sweep(recipe)).shares
    assert (share.todo, share.passes) == (4, (8, 8))


IDLE = {
    "interval": {"guidance": "stg", "interval": [0.9, 1.0]},
    "scale": {"guidance": "stg", "stg_scale": 0},
    "schedule": {"guidance": "pag", "pag_scale": {"breakpoints": {1.0: 0, 0.5: 0}}},
    "text": {"guidance": "cfg", "interval": [0.9, 1.0]},
}


def test_a_method_that_does_nothing_is_named_before_any_clip(tmp_path, painter, capsys):
    acting = {"cfg": {}, "none": {}, "late": {"guidance": "stg", "interval": [0.5, 1.0]}}
    path = str(write_recipe(tmp_path, methods={**IDLE, **acting}, seeds=[0]))
    assert main(["sweep", path, "--dry-run"]) == 0
    named = re.findall(r"^warning: (\w+) on embedded: (.*)$", capsys.readouterr().out, re.MULTILINE)
    stg = "stg perturbs no step: scale, blocks, schedules and interval leave none"
    assert named == [
        ("interval", stg),
        ("scale", stg),
        ("schedule", stg.replace("stg", "pag")),
        ("text", "cfg guides no step: its interval leaves none"),
    ]
    assert main(["sweep", path, "--quiet"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"oseg-video: warning: {name} on embedded: {why}" for name, why in named
    ]
