"""Manifests: read back as written, and those of earlier versions as if they had been written today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oseg_video.config import job_from_plain, known_keys
from oseg_video.config.manifest import ManifestError, new_manifest, parse_manifest, read_manifest
from oseg_video.guidance.methods import APG, METHODS, OSEG, OSEGReleased
from oseg_video.settings import settings_of
from oseg_video.types import SettingError

OLD = Path(__file__).parents[2] / "data" / "manifest-schema-1.json"
"""Written by version 0.1.0 with `--guidance oseg --text apg --eta 0.5 --momentum -0.25`."""
SIZE = {"steps": 2, "frames": 7, "height": 32, "width": 32, "fps": 8}
MADE = {"model": {"name": "x"}, "clip": {"frames": 1}, "machine": {"device": "cpu"}}


def old(**changes: Any) -> str:
    plain = json.loads(OLD.read_text())
    plain["job"] |= changes
    return json.dumps(plain)


def test_a_manifest_is_read_as_written(tmp_path: Path) -> None:
    job = read_manifest(OLD).read_job()
    manifest = new_manifest(job, **MADE)
    (tmp_path / "a.json").write_text(manifest.text)
    assert read_manifest(tmp_path / "a.json") == manifest
    assert parse_manifest(manifest.comment, "a.mp4") == manifest
    assert manifest.read_job() == job and manifest.method == "oseg" and manifest.seed == 3
    assert manifest.settings["oseg_scale"] == 1.0 and manifest.settings["text"] == "apg"


def test_a_manifest_of_schema_1_is_read() -> None:
    manifest = read_manifest(OLD)
    job = manifest.read_job()
    assert job.guidance == OSEG(
        guidance_scale=2.0,
        scale=1.0,
        blocks=(3,),
        text=APG(eta=0.5, momentum=-0.25),
        blur_sigma=5.0,
        perturb="cond",
    )
    assert (job.seeds, job.steps, job.frames, job.dtype, job.own) == ((3,), 2, 19, "float32", {})
    assert manifest.prompt == "a red circle moving left on a white background"
    assert manifest.method == "oseg"


@pytest.mark.parametrize(("before", "perturb"), [(True, "both"), (False, "cond")])
def test_an_older_name_of_perturb_is_read(before: bool, perturb: str) -> None:
    plain = json.loads(new_manifest(read_manifest(OLD).read_job(), **MADE).text)
    guidance = plain["job"]["guidance"]
    del guidance["perturb"]
    guidance["perturb_unconditional"] = before
    job = parse_manifest(json.dumps(plain), "a.json").read_job()
    assert isinstance(job.guidance, OSEG) and job.guidance.perturb == perturb


def test_its_published_rule_is_a_method_of_its_own() -> None:
    plain = {"rule": "published", "published_skip": True, "mix": 0.67, "oseg_scale": 0.62, "text": None}
    unset = dict.fromkeys(("eta", "momentum", "blur_sigma", "perturb_unconditional"))
    job = parse_manifest(old(**plain, **unset), "a.json").read_job()
    assert job.guidance == OSEGReleased(
        guidance_scale=2.0, scale=0.62, mix=0.67, blocks=(3,), skip_conditional=True
    )
    slides = parse_manifest(old(rule="slides"), "a.json").read_job()
    assert isinstance(slides.guidance, OSEG)


def test_settings_of_a_family_are_its_own() -> None:
    manifest = parse_manifest(old(motion_bucket_id=127), "a.json")
    assert manifest.read_job().own == {"motion_bucket_id": 127}


def test_what_this_version_does_not_know_is_said_when_the_job_is_wanted() -> None:
    manifest = parse_manifest(old(colour="red"), "a.json")
    assert manifest.prompt and manifest.settings["guidance"] == "oseg"
    with pytest.raises(SettingError, match="unknown setting 'colour'"):
        manifest.read_job()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "a.json holds no manifest of oseg-video"),
        ("[" * 100_000, "a.json holds no manifest of oseg-video"),
        ('{"made_by": "oseg-video", "schema": 3}', "schema 3; this version reads 1 and 2"),
        ('{"made_by": "oseg-video", "schema": 2, "job": []}', "an incomplete manifest"),
        ('{"made_by": "oseg-video", "schema": 2, "job": {}, "clip": 3}', "an incomplete manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(text, "a.json")


def test_a_clip_without_its_parts_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"made_by": "oseg-video", "schema": 2, "job": {}}))
    with pytest.raises(ManifestError, match="incomplete"):
        read_manifest(tmp_path / "a.json")


LARGE = (
    *(2**64, 10**400, 1e30, -1e30, [1e30, 1e30], [2**64], {"breakpoints": {"1.0": 1e30}}),
    *({"uncond": 1e30}, {"uncond": 2**64}, 2**64 - 1, 1e19, "inf"),
)


@pytest.mark.parametrize("method", METHODS)
def test_a_job_that_can_be_run_has_a_manifest_that_can_be_read(method: str) -> None:
    blocks = {"blocks": [1]} if "blocks" in settings_of(METHODS[method]) else {}
    accepted = 0
    for name in known_keys():
        for value in LARGE:
            try:
                job = job_from_plain({"prompts": ["x"], **SIZE, "guidance": method, **blocks, name: value})
            except SettingError:
                continue
            accepted += 1
            read = parse_manifest(new_manifest(job, **MADE).text, name).read_job()
            assert (read.guidance, read.reuse, read.own) == (job.guidance, job.reuse, job.own), name
    assert accepted > 5
