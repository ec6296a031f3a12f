"""The dry run of a sweep: what it counts, and what its hours rest on."""

import json

import pytest

from oseg_video.cli import main
from oseg_video.jobs.counted import count_job
from oseg_video.jobs.loading import hub
from oseg_video.sweep.engines.local import InProcess
from oseg_video.sweep.estimate import describe, estimate
from oseg_video.sweep.recipe import read_sweep
from oseg_video.sweep.run import run_sweep, survey
from oseg_video.sweep.stores import open_store
from oseg_video.sweep.table import build_table, plan_variations
from tests.sweeps import table, write_recipe


@pytest.fixture
def variations(tmp_path):
    return plan_variations(read_sweep(write_recipe(tmp_path)))


def test_passes_and_flops_are_those_of_the_clips(variations):
    found = estimate(variations, (), tflops=2)
    cfg, oseg = found.shares
    assert (cfg.clips, cfg.todo, cfg.steps) == (4, 4, 2)
    assert cfg.passes == (4, 4)  # two a step
    assert oseg.passes == (5, 5)  # and half of one, from block 3 of 6
    work = [count_job(variation.job).flops[0] for variation in variations]
    assert [cfg.flops[0], oseg.flops[0]] == work and work[0] < work[1] < 1.5 * work[0]
    (hours,) = found.hours
    assert hours.clips == 8 and hours.hours[0] == pytest.approx(4 * sum(work) / 2e12 / 3600)
    assert hours.basis.startswith("assumed: 2 TFLOPS") and found.unknown == 0
    unknown = estimate(variations, ())
    assert unknown.hours == () and unknown.unknown == 8


def test_finished_clips_give_the_rate(tmp_path, variations, painter):
    items = build_table(variations)
    store = open_store(str(tmp_path / "out"))
    run_sweep(items[:3], store, InProcess(store))  # three of CFG, half a second each
    records, _ = survey(items, open_store(str(tmp_path / "out")))
    found = estimate(variations, records, tflops=1e9)
    assert [(share.done, share.todo) for share in found.shares] == [(3, 1), (0, 4)]
    (hours,) = found.hours
    cfg, oseg = (share.flops[0] for share in found.shares)
    assert hours.hours[0] == pytest.approx((cfg + 4 * oseg) / (3 * cfg / 1.5) / 3600)
    assert hours.basis.startswith("measured: 3 finished clips of the same model and size")


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
    found = estimate(plan_variations(read_sweep(write_recipe(tmp_path, methods=methods))), (), tflops=1)
    assert found.shares[0].passes == (4, 5)
    assert found.hours[0].hours[0] < found.hours[0].hours[1]
    assert "16 to 20" in "\n".join(describe(found))


def test_the_command_makes_nothing(capsys, tmp_path):
    path = str(write_recipe(tmp_path))
    assert main(["sweep", path, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("8 clips: 0 done, 0 failed, 8 to do\n")
    assert "no estimate for 8 clips: none is finished yet; --tflops X assumes a rate" in output
    assert main(["sweep", path, "--dry-run", "--json", "--tflops", "1", "--quiet"]) == 0
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
    from oseg_video.sweep.launch import dry_run

    (share,) = dry_run(read_sweep(recipe)).shares
    assert (share.todo, share.passes) == (4, (8, 8)) and share.flops[0] > 1e11
