"""`generate --explain`: what a job will do, from its configuration alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from oseg_video.cli import main
from oseg_video.jobs.loading import hub
from oseg_video.jobs.loading.hub import HubError


def explained(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["generate", "--prompt", "a red circle", "--explain", *flags]) == 0
    return capsys.readouterr().out


def test_branches_rule_and_passes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(
        capsys, "--guidance", "stg", "--blocks", "3", "--stg-scale", "0.5", "--guidance-scale", "4"
    )
    assert "C + 3 (C - U) + 0.5 (C - P)" in text
    assert "conditional, hidden states passed on unchanged in block 3 (transformer_blocks.3)" in text
    # Three of six blocks run again: 2.5 passes instead of CFG's 2.
    assert "2.50 passes a step" in text and "50.0 passes (CFG: 40)" in text


def test_memory_is_that_of_the_clip_and_the_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    def memory(*flags: str) -> tuple[float, float]:
        text = explained(capsys, *flags)
        found = re.search(r"memory     ([\d.]+) GiB of weights .* in (\w+), ([\d.]+) GiB", text)
        assert found and found[2] == "float32"
        return float(found[1]), float(found[3])

    (weights, small), (same, large) = memory(), memory("--height=512", "--width=512")
    assert weights == same == small == 0.0 < large


def test_a_perturbed_uncond_is_no_third_pass(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--guidance", "stg", "--blocks", "3", "--guidance-scale", "4")
    text = explained(capsys, *flags, "--perturb", "uncond")
    assert "rule      C + 3 (C - U~)\n" in text
    assert "uncond_perturbed: unconditional, hidden states passed on unchanged in block 3" in text
    assert "2.00 passes a step" in text and "40.0 passes (CFG: 40)" in text
    text = explained(capsys, *flags, "--perturb", "uncond", "--refresh", "uncond=2", "--steps", "7")
    assert "computed in 4 of 7 steps, else estimated" in text and "11.0 passes (CFG: 14)" in text


def test_a_negative_prompt_without_its_pass(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise HubError("no network")

    monkeypatch.setattr(hub, "find_commit", unreachable)
    flags = ("--model", "wan", "--guidance", "nag", "--guidance-scale", "1", "--negative-prompt", "blurry")
    text = explained(capsys, *flags)
    assert "rule      C~\n" in text and "to the negative text (scale 9, tau 2.5, alpha 0.25)" in text
    assert "1.00 passes a step, and cross-attention to a second text in 30 blocks" in text
    assert "50.0 passes (CFG: 100)" in text and "warning" not in text
    flags = ("--guidance", "nag", "--guidance-scale", "1", "--negative-prompt", "blurry", "--steps", "7")
    text = explained(capsys, *flags)
    assert "2.00 passes a step, as the negative text takes a second row through all blocks" in text
    assert "14.0 passes (CFG: 14)" in text


def test_an_interval_shows_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(capsys, "--guidance", "seg", "--interval", "0.25,0.5")
    assert [line for line in text.splitlines() if line.startswith("steps")] == [
        "steps 1 to 5",
        "steps 6 to 10",
        "steps 11 to 20",
    ]


def test_steps_that_differ_in_their_blocks_alone_are_said_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = explained(capsys, "--guidance", "s2", "--steps", "40", "--interval", "0.25,0.75")
    spans = [line for line in text.splitlines() if line.startswith("steps")]
    assert len(spans) == 4 and spans[0] == "steps 1 to 10" and spans[3] == "steps 31 to 40"
    assert "to 30\n  the same, with other blocks in each\n  cost      2." in text
    recipe = tmp_path / "by-level.yaml"
    recipe.write_text("blocks: {breakpoints: {1.0: [1], 0.6: [2], 0.3: [3]}}")
    by_level = explained(capsys, "--config", str(recipe), "--guidance", "stg")
    assert all(f"in block {block} (" in by_level for block in (1, 2, 3)) and "other blocks" not in by_level


def test_a_method_that_does_nothing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    idle = explained(capsys, "--guidance", "stg", "--steps", "4", "--interval", "0.9,1.0")
    assert "\nwarning    stg perturbs no step: scale, blocks, schedules and interval leave none\n" in idle
    acting = explained(capsys, "--guidance", "stg", "--steps", "4", "--interval", "0.75,1.0")
    assert "warning" not in acting


def test_what_is_estimated_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--guidance", "stg", "--blocks", "3", "--guidance-scale", "4", "--steps", "7")
    text = explained(capsys, *flags, "--refresh", "uncond=2,perturbed=0.5")
    assert "\nreuse      uncond computed every 2 steps; perturbed computed up to 50% of the steps\n" in text
    assert "uncond: unconditional; computed in 4 of 7 steps, else estimated" in text
    assert "(transformer_blocks.3); computed in 5 of 7 steps, else estimated" in text
    assert "total      13.5 passes (CFG: 14)" in text  # 7 + 4 + 5 / 2
    text = explained(capsys, *flags, "--cache", "0.1")
    assert "blocks behind the first skipped where it moved by less than 0.1" in text
    # The first and the last step are computed, of the others at least the first of six blocks.
    assert f"total      {2 * 2.5 + 5 / 6:.1f} to 17.5 passes (CFG: 14), depending on what" in text
    by_level = (*flags, "--stg-scale", "1.0:1,0.5:2", "--refresh", "uncond=2,perturbed=3")
    assert "cost      1.00 to 2.50 passes a step" in explained(capsys, *by_level)


def test_an_unknown_block_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", "--explain", "--guidance", "stg", "--blocks", "9"]) == 2
    assert "no block 9: this mochi model has 6 blocks, 0 to 5" in capsys.readouterr().err


def test_a_reference_of_more_directions_than_a_head_has_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        "generate",
        "--prompt",
        "x",
        "--explain",
        "--guidance",
        "oseg",
        "--reference",
        "principal:65",
    ]
    assert main(arguments) == 2
    assert "reference principal:65 needs a head dim of at least 65, got 32" in capsys.readouterr().err


def test_ranks_and_why_they_work_so(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [text for text in explained(capsys, "--gpus", "4").splitlines() if text.startswith("ranks")]
    assert re.fullmatch(r"ranks      4, [a-z]+=\d.*: .+", line)
    (line,) = [text for text in explained(capsys, "--parallel", "ring=2").splitlines() if "ranks" in text]
    assert line == "ranks      2, ring=2"
    assert "ranks  " not in explained(capsys)
    assert main(["generate", "--prompt", "x", "--explain", "--gpus", "2", "--parallel", "branch=3"]) == 2
    assert "parallel branch=3 needs 3 ranks, this run has 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model svd --prompt x", "svd takes no text"),
        ("--model svd", "svd makes clips from an image; give it one with --image"),
        ("--model ltx --prompt x --frames 100", "frames 100: ltx makes 8 k + 1 frames; nearest: 97 or 105"),
        ("--model ltx --prompt x --height 100", "height 100: ltx needs a multiple of 32 pixels"),
        ("--model ltx --prompt x --image missing.png", "cannot read missing.png: No such file"),
        ("--model mochi", "no prompt given"),
        ("--model wan --guidance nag --cache 0.1 --prompt x", "which nag never runs; leave them out"),
        (
            "--model ltx --guidance pag --perturb uncond --guidance-scale 1 --prompt x",
            "perturb uncond needs text guidance, a guidance_scale other than 1",
        ),
        (
            "--model ltx --prompt x --guidance-scale 0",
            "guidance_scale 0: oseg needs the unconditional branch",
        ),
        (
            "--model sdxl --prompt x --cache 0.1",
            "cache: sdxl has no chain of blocks of which the first could decide; use refresh, or cache 0",
        ),
        ("--prompt x --guidance-scale 0", "guidance_scale 0: oseg needs the unconditional branch"),
    ],
)
def test_what_needs_no_hub_is_checked_without_it(capsys, monkeypatch, arguments, message):
    def unreachable(*_, **__):
        raise HubError("no network")

    monkeypatch.setattr(hub, "find_commit", unreachable)
    assert main(["generate", *arguments.split(), "--explain"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and re.fullmatch(r"oseg-video: error: [^\n]+\n", output.err)
    assert message in output.err


def test_settings_of_the_family_and_the_negative_prompt_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which a recipe may say more than the user; offline the family's name is enough."""

    def unreached(*_: object) -> None:
        raise HubError("not reached")

    monkeypatch.setattr(hub, "find_commit", unreached)
    text = explained(capsys, "--model", "wan", "--guidance", "cfg", "--negative-prompt", "a boat")
    assert "\nnegative   'a boat'\nsettings   flow_shift 3.0\n" in text
    text = explained(
        capsys, "--model", "cogvideox", "--guidance", "stg", "--blocks", "1", "--use-dynamic-cfg"
    )
    assert "\nscale      the one that use_dynamic_cfg moves in every step\n" in text
    text = explained(capsys, "--model", "hunyuan", "--guidance", "cfg", "--flow-shift", "5")
    assert "\nsettings   embedded_guidance_scale 6.0, flow_shift 5.0\n" in text and "negative" not in text
