"""The probe on every pipeline class: dense attention in float64, and predictions of plain guided runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oseg_video import CFG, OSEG, SAG, STG, GuidanceError, guided, landscape, probe
from oseg_video.adapters import adapter_for
from oseg_video.cli import main
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.plan import Branch, Perturbation, Step, StepPlan, Stream
from oseg_video.probing.drawing import draw
from oseg_video.probing.probe import query_transforms
from oseg_video.probing.result import AS_IT_IS
from oseg_video.types import SettingError
from tests.integration.families import CASES, MOCHI, SCALE, Case, over, quiet
from tests.integration.variants import SKYREELS_V2_CAUSAL, WAN_EXPERTS

QUERIES = 5
SIGMA = 1.5


def arguments(case: Case, scale: float, **overrides: Any) -> dict[str, Any]:
    """Those of a short call of the pipeline."""
    settings = {"num_inference_steps": 3, "output_type": "latent"}
    return (
        case.condition("a red circle") | case.scale(scale) | case.size | case.extra() | settings | overrides
    )


def guider(case: Case, pipe: Any, scale: float) -> None:
    if hasattr(pipe, "guider"):
        pipe.guider = pipe.guider.new(guidance_scale=scale)


@contextmanager
def attention_calls(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """By block: what torch's attention function is given inside its self-attention."""
    adapter = adapter_for(pipe)
    denoiser = getattr(pipe, adapter.denoiser_attributes[0])
    calls: dict[int, list[dict[str, Any]]] = {}
    inside: list[int] = []
    handles = []
    for address in adapter.blocks(denoiser):
        attention = adapter.site(denoiser.get_submodule(address.path), address).attention
        enter = lambda *_, index=address.index: inside.append(index)  # noqa: E731
        handles.append(attention.register_forward_pre_hook(enter))
        handles.append(attention.register_forward_hook(lambda *_: inside.clear()))
    plain = F.scaled_dot_product_attention

    def noting(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *rest: Any, **more: Any
    ) -> Any:
        if inside:
            noted = {"query": query, "key": key, "mask": attn_mask, "scale": more.get("scale")}
            calls.setdefault(inside[-1], []).append(noted)
        return plain(query, key, value, attn_mask, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    yield calls
    monkeypatch.undo()
    for handle in handles:
        handle.remove()


def dense(case: Case, calls: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Quantities by head, mean over the sampled tokens, from whole attention maps in float64."""
    rows = []
    for call in calls:
        query, key = call["query"].double(), call["key"].double()
        batch, _, everything, dim = query.shape
        tokens = case.grid.tokens if case.grid else everything
        random = torch.Generator().manual_seed(0)
        chosen = zip(
            torch.randint(batch, (QUERIES,), generator=random).tolist(),
            torch.randint(tokens, (QUERIES,), generator=random).tolist(),
            strict=True,
        )
        scale = call["scale"] or dim**-0.5
        for row, token in chosen:
            token += case.start
            logits = scale * torch.einsum("nd,ntd->nt", query[row, :, token], key[row])
            keys = key[row]
            if call["mask"] is not None:
                mask = call["mask"].expand(batch, 1, call["mask"].shape[2], -1)[row, 0, 0]
                valid = mask if mask.dtype is torch.bool else mask > -1
                logits, keys = logits[:, valid], keys[:, valid]
            weights = logits.softmax(-1)
            covariance = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None]
            hessian = scale**2 * keys.transpose(1, 2) @ covariance @ keys
            norm = torch.linalg.matrix_norm(covariance, 2)
            own = F.normalize(key[row, :, token], dim=-1)
            vector = query[row, :, token]
            rest = vector - (vector * own).sum(-1, keepdim=True) * own
            rows.append(
                {
                    "entropy": -torch.special.xlogy(weights, weights).sum(-1),
                    "energy": -logits.logsumexp(-1),
                    "covariance_norm": norm,
                    "curvature": torch.linalg.matrix_norm(hessian, 2),
                    "bound": scale**2 * torch.linalg.matrix_norm(keys, 2) ** 2 * norm,
                    "orthogonal": rest.norm(dim=-1) / vector.norm(dim=-1),
                }
            )
    return {name: torch.stack([row[name] for row in rows]).mean(0) for name in rows[0]}


@over(SKYREELS_V2_CAUSAL)
def test_attention_to_earlier_frames_alone_is_refused(case: Case, pipe: Any) -> None:
    with pytest.raises(GuidanceError, match=r"blocks\.1\.attn1 attends to some of the video's tokens alone"):
        probe(pipe, OSEG(blocks=(0,)), **arguments(case, 1.0), blocks=(1,))


@over(*CASES, WAN_EXPERTS)
def test_attention_is_that_of_whole_maps(case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guider(case, pipe, 1.0)
    given = arguments(case, 1.0)
    with attention_calls(pipe, monkeypatch) as calls:
        stop = _stop_after_first_step(pipe, monkeypatch)
        with pytest.raises(StopIteration):
            pipe(**given, generator=torch.Generator("cpu").manual_seed(0))
        stop()
    last = case.blocks - 1
    found = probe(
        pipe, OSEG(blocks=(0,)), **given, blocks=(0, 2, last), noise_levels=(1.0,), sigmas=(), queries=QUERIES
    )
    assert [(row.block, row.queries) for row in found.attention] == [(b, AS_IT_IS) for b in (0, 2, last)]
    for row in found.attention:
        wanted = dense(case, calls[row.block])
        for name, values in wanted.items():
            assert row.heads[name] == pytest.approx(values.tolist(), rel=1e-4, abs=1e-6), name
    assert 0 < found.largest_share_of_bound <= 1
    assert found.rows_checked == sum(len(row.heads["entropy"]) for row in found.attention) * QUERIES * (
        len(calls[0]) if case.name.startswith("mochi") else 1
    )


def _stop_after_first_step(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def step(*_: Any, **__: Any) -> None:
        raise StopIteration

    monkeypatch.setattr(type(pipe.scheduler), "step", step)
    return monkeypatch.undo


@dataclass(frozen=True, kw_only=True)
class Recording(Guidance):
    """Plain guidance that notes plain and perturbed predictions of every step."""

    name = "recording"

    method: OSEG | STG
    text: bool
    seen: list[dict[str, Tensor]]

    @property
    def blocks_used(self) -> Any:
        return self.method.blocks_used

    @property
    def largest_guidance_scale(self) -> float | None:
        return None

    def of_stream(self, stream: Stream) -> Guidance:
        return self if stream == "video" else CFG()

    def plan(self, step: Step) -> StepPlan:
        branches = {"uncond": Branch("uncond")} if self.text else {}
        branches |= {"cond": Branch("cond")}
        perturbation = Perturbation(self.method.blocks, self.method.change, streams=("video",))
        branches["perturbed"] = Branch("cond", perturbation)
        return StepPlan(branches, "", partial(self._note, step.pipeline_scale))

    def _note(self, scale: float, *, cond: Tensor, perturbed: Tensor, uncond: Tensor | None = None) -> Tensor:
        noted = {"cond": cond, "perturbed": perturbed, "uncond": uncond}
        self.seen.append({name: x.double() for name, x in noted.items() if x is not None})
        return cond if uncond is None else uncond + scale * (cond - uncond)


@over(*CASES, WAN_EXPERTS)
def test_effects_are_those_of_each_block_alone(case: Case, pipe: Any) -> None:
    guider(case, pipe, SCALE)
    given = arguments(case, SCALE)
    settings: dict[str, Any] = {"blocks": (1, case.blocks - 1), "sigmas": (), "queries": 1}
    method = OSEG(blocks=(0,), blur_sigma=SIGMA)
    found = probe(pipe, method, **given, **settings, noise_levels=(1.0, 0.0))
    levels = found.noise_levels
    assert len(found.effects) == 2 * len(levels) == 4
    for block in settings["blocks"]:
        seen: list[dict[str, Tensor]] = []
        alone = OSEG(blocks=(block,), blur_sigma=SIGMA)
        with guided(pipe, Recording(method=alone, text=True, seen=seen)):
            pipe(**given, generator=torch.Generator("cpu").manual_seed(0))
        for level, predictions in zip(levels, (seen[0], seen[-1]), strict=True):
            cond, push = predictions["cond"], predictions["cond"] - predictions["perturbed"]
            change = float(push.norm() / cond.norm())
            cosine = F.cosine_similarity(push.flatten(), (cond - predictions["uncond"]).flatten(), dim=0)
            assert found.effect(block, level) == pytest.approx(change, rel=1e-3)
            assert found.cosine(block, level) == pytest.approx(float(cosine), abs=1e-3)


@over(*(case for case in CASES if case.grid))
def test_smoothed_queries_are_those_of_the_perturbed_pass(
    case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guider(case, pipe, 1.0)
    given = arguments(case, 1.0)
    method = OSEG(blocks=(1,), blur_sigma=SIGMA)
    found = probe(pipe, method, **given, blocks=(1,), noise_levels=(1.0,), sigmas=(SIGMA,), queries=QUERIES)
    assert found.transforms == [AS_IT_IS, f"seg {SIGMA:g}", f"oseg {SIGMA:g}"]
    seen: list[dict[str, Tensor]] = []
    with (
        attention_calls(pipe, monkeypatch) as calls,
        guided(pipe, Recording(method=method, text=False, seen=seen)),
    ):
        stop = _stop_after_first_step(pipe, monkeypatch)
        with pytest.raises(StopIteration):
            pipe(**given, generator=torch.Generator("cpu").manual_seed(0))
        stop()
    plain, changed = calls[1][: len(calls[1]) // 2], calls[1][len(calls[1]) // 2 :]
    for queries, noted in ((AS_IT_IS, plain), (f"oseg {SIGMA:g}", changed)):
        (row,) = [row for row in found.attention if row.queries == queries]
        for name, values in dense(case, noted).items():
            assert row.heads[name] == pytest.approx(values.tolist(), rel=1e-4, abs=1e-6), (queries, name)


@over(*(case for case in CASES if case.grid))
def test_the_landscape_is_that_of_whole_maps(case: Case, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guider(case, pipe, 1.0)
    given = arguments(case, 1.0)
    with attention_calls(pipe, monkeypatch) as calls:
        stop = _stop_after_first_step(pipe, monkeypatch)
        with pytest.raises(StopIteration):
            pipe(**given, generator=torch.Generator("cpu").manual_seed(0))
        stop()
    found = landscape(pipe, block=1, noise_level=1.0, sigmas=(SIGMA,), token=(1, 2, 0), **given)
    assert list(found.energy) == list(found.attention) == [AS_IT_IS, f"seg {SIGMA:g}", f"oseg {SIGMA:g}"]
    call, grid = calls[1][0], case.grid
    query, key = call["query"].double()[0], call["key"].double()[0]
    logits = (call["scale"] or query.shape[-1] ** -0.5) * query @ key.transpose(1, 2)
    if call["mask"] is not None:
        mask = call["mask"][0, 0, 0]
        logits[..., ~mask if mask.dtype is torch.bool else mask < -1] = -torch.inf
    clip = slice(case.start, case.start + grid.tokens)
    energy = -logits.logsumexp(-1).mean(0)[clip].view(grid.shape)
    token = case.start + (grid.height + 2) * grid.width
    attention = logits.softmax(-1).mean(0)[token, clip].view(grid.shape)
    torch.testing.assert_close(found.energy[AS_IT_IS].double(), energy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.attention[AS_IT_IS].double(), attention, rtol=1e-4, atol=1e-6)
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<svg"), (".html", b"<!doctype html>")):
        assert draw(found, suffix).startswith(start)


@pytest.mark.parametrize("name", ["svd", "sdxl"])
def test_the_landscape_of_a_unet_has_a_frame_for_every_row(name: str) -> None:
    case = next(one for one in CASES if one.name == name)
    block = 0 if name == "svd" else "mid:0"
    found = landscape(quiet(case.build()), block=block, noise_level=1.0, sigmas=(), **arguments(case, SCALE))
    frames = case.size.get("num_frames", 1)
    assert found.energy[AS_IT_IS].shape[0] == frames and found.token[0] == frames // 2
    shown = found.attention[AS_IT_IS].sum(dim=(1, 2))
    assert shown[found.token[0]] == pytest.approx(1, abs=1e-5) and int((shown > 0).sum()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--block", "77"], "no block 77"),
        (["--block", "blocks"], "block must name one block, got blocks, which are 6"),
        (["--block", "3", "--token", "1,2"], "must be frame, row and column, such as 2,8,8, got '1,2'"),
        (["--block", "3", "--token", "9,0,0"], r"token must be inside .* \(4, 4, 4\), got \(9, 0, 0\)"),
        (["--block", "3", "--noise-level", "2"], r"noise_level must be in \[0, 1\], got 2"),
        (["--block", "9" * 5000], "--block: must be one block, by index or name, got '9999"),
        (["--block", "1,3"], "--block: must be one block, by index or name, got '1,3'"),
        (["--block", "3", "--sigmas", "-1"], "sigmas must be above 0, got -1"),
        (["--block", "3", "--out", "a.txt"], "--out must end in .png, .svg, .html, got 'a.txt'"),
        (["--block", "3", "--out", "{file}.png"], "is in the way and was not made by oseg-video"),
    ],
)
def test_a_mistaken_landscape_is_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "file.png").write_text("mine")
    given = [flag.format(file=tmp_path / "file") for flag in flags] + ["--overwrite", "--steps", "2"]
    out = [] if "--out" in flags else ["--out", str(tmp_path / "drawn.png")]
    assert main(["landscape", "--prompt", "x", *out, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert [path.name for path in tmp_path.iterdir()] == ["file.png"]


def test_several_prompts_are_averaged_and_the_pipeline_is_as_before() -> None:
    pipe = quiet(MOCHI.build())
    before = MOCHI.run(pipe)
    given = arguments(MOCHI, SCALE)
    del given["prompt"]
    settings: dict[str, Any] = {"sigmas": (), "queries": 2, "noise_levels": (0.5,)}
    both = probe(pipe, STG(blocks=(0,)), ["a red circle", "two boats"], **settings, **given)
    alone = [probe(pipe, STG(blocks=(0,)), [one], **settings, **given) for one in both.prompts]
    for block in both.paths:
        effects = [one.effect(block) for one in alone]
        assert both.effect(block) == pytest.approx(sum(effects) / 2)
        entropies = [one.quantity(block, "entropy") for one in alone]
        assert both.quantity(block, "entropy") == pytest.approx(sum(entropies) / 2)
    assert torch.equal(MOCHI.run(pipe), before)
    json.dumps(both.to_dict())


def test_what_cannot_be_probed_is_refused() -> None:
    pipe = MOCHI.build()

    refused: dict[str, dict[str, Any]] = {
        "guidance cfg perturbs no single block; probe with one that does": {"guidance": CFG()},
        "guidance sag perturbs no single block; probe with one that does": {"guidance": SAG()},
        r"noise_levels must be in \[0, 1\], got 2": {"noise_levels": (2,)},
        "noise_levels must name at least one": {"noise_levels": ()},
        "sigmas must be above 0, got 0": {"sigmas": (0,)},
        "queries must be at least 1, got 0": {"queries": 0},
        "no block 9: this mochi model has 5 blocks": {"blocks": (9,)},
    }
    for message, given in refused.items():
        with pytest.raises(SettingError, match=message):
            probe(pipe, **{"guidance": STG(blocks=(0,)), **given})


def test_a_pipeline_that_has_only_its_second_expert_is_probed() -> None:
    pipe = quiet(WAN_EXPERTS.build())
    pipe.transformer = None
    pipe.register_to_config(boundary_ratio=2.0)  # every step is below it
    given: dict[str, Any] = {**arguments(WAN_EXPERTS, SCALE), "num_inference_steps": 2}
    assert probe(pipe, STG(blocks=(0,)), noise_levels=(1.0,), queries=2, **given).effects
    assert landscape(pipe, block=1, noise_level=1.0, **given).attention


def test_the_command_writes_a_page_and_a_table(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    flags = ["--prompt", "a red <circle> moving left", "--steps", "2", "--blocks", "1,3", "--queries", "2"]
    flags += ["--noise-levels", "1,0.3", "--sigmas", "2,inf", "--out", str(tmp_path / "probe")]
    assert main(["probe", *flags]) == 0
    *table, page = capsys.readouterr().out.splitlines()
    assert page == str(tmp_path / "probe" / "probe.html")
    assert [line.split()[0] for line in table if line.strip()[:1].isdigit()] == ["1", "3"]
    assert any("of its bound in" in line for line in table)
    text = Path(page).read_text()
    assert text.count("<svg") == 2 + 5 * 2 and "<script" not in text
    data = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert data["prompts"] == ["a red <circle> moving left"] and data["method"] == "oseg"
    assert {row["queries"] for row in data["attention"]} == {
        AS_IT_IS,
        "seg 2",
        "oseg 2",
        "seg inf",
        "oseg inf",
    }
    # The same folder again, and as JSON.
    assert main(["probe", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["effects"] == data["effects"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--blocks", "1,x:"], "no block x:: this mochi model has"),
        (["--blocks", "77"], "no block 77: this mochi model has 6 blocks"),
        (["--noise-levels", "a"], "must be numbers with commas between them, got 'a'"),
        (["--noise-levels", "7"], r"noise_levels must be in \[0, 1\], got 7"),
        (
            ["--guidance", "cfg"],
            "guidance cfg perturbs no single block; probe with one that does, such as oseg",
        ),
        (
            ["--guidance", "sag", "--model", "sdxl"],
            "guidance sag perturbs no single block; probe with one that does",
        ),
        (["--guidance", "oseg", "--steps", "x"], "steps"),
        (["--seed", "1", "2"], "one seed is probed, got 1 2"),
        (["--cache", "0.1"], "unknown argument .--cache. of probe"),
        (["--out", "{file}"], "cannot write into .*: it is a file"),
        (["--parallel", "branch=2"], "needs 2 ranks"),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    given = [flag.format(file=tmp_path / "file") for flag in flags]
    out = [] if "--out" in flags else ["--out", str(tmp_path / "probe")]
    assert main(["probe", "--prompt", "x", *out, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()

    assert re.search(message, line), line
    assert not (tmp_path / "probe").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["probe", "--noise-levels", "7"], "noise_levels must be in [0, 1], got 7.0"),
        (["probe", "--noise-levels", "nan"], "noise_levels must be in [0, 1], got nan"),
        (["probe", "--sigmas", "0"], "sigmas must be above 0, got 0"),
        (["probe", "--out", "/proc/x"], "cannot write to /proc/x: No such file or directory"),
        (["landscape", "--block", "3", "--prompt", "y"], "one prompt is drawn, got 2"),
        (["landscape", "--block", "3", "--seed", "1", "2"], "one seed is probed, got 1 2"),
        (
            ["landscape", "--block", "3", "--out", "/proc/x.png"],
            "cannot write to /proc: No such file or directory",
        ),
        (["landscape", "--block", "3", "--noise-level", "-1"], "noise_level must be in [0, 1], got -1.0"),
        (["landscape", "--block", "3", "--sigmas", "nan"], "sigmas must be above 0, got nan"),
    ],
)
def test_what_no_model_can_be_asked_is_refused_before_one_is_loaded(
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("oseg_video.probing.job.LoadedModel", lambda *_, **__: pytest.fail("loaded"))
    out = tmp_path / "out.png"
    assert main([*flags[:1], "--prompt", "x", "--out", str(out), *flags[1:]]) == 2
    assert capsys.readouterr().err == f"oseg-video: error: {message}\n"


def test_sigmas_that_differ_look_different() -> None:
    names = list(query_transforms((3.0, 3.0000001, float("inf"))).values())
    assert names == ["seg 3", "oseg 3", "seg 3.0000001", "oseg 3.0000001", "seg inf", "oseg inf"]
