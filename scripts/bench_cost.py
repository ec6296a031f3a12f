"""What guidance costs: counted FLOPs at full size, and seconds on a scaled-down model.

    python scripts/bench_cost.py --out scripts/bench_cost.json
    python scripts/bench_cost.py --parts counted --only mochi ltx
    python scripts/bench_cost.py --write-readme          # the stored numbers into scripts/README.md

Counted: one guided step of the recipes of every method that all families have (`configs/FAMILY.yaml`), at
the size that the recipe sets, on the meta device, with and without prefix reuse, against the same pipeline's
plain step (CFG where it runs an unconditional branch). Matrix products, convolutions and attention count, two
operations per multiply-add.
Reuse: the same for all steps of a clip by the OSEG recipe, where branches are computed every so many steps.
Clock: seconds of one step of a Mochi with all its 48 blocks but small ones, on the wall and of this process
alone, methods in turn within each round, as ratios to CFG in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flops import step_cost
from marked import made_with, markdown, read_stored, store, write_readme
from tqdm import tqdm

from oseg_video.adapters import ClipSize, ModelAdapter, adapter_for_class, all_adapters
from oseg_video.config import resolve_job
from oseg_video.config.recipes import shipped_files
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.methods import CFG, OSEG, PAG, SEG, STG, Guidance
from oseg_video.guidance.plan import Branch, Step
from oseg_video.guidance.reuse import REFRESH, Calendar, Reuse
from oseg_video.jobs.loading.meta import full_size_denoiser
from oseg_video.jobs.step_kinds import pipeline_scales

SMALL = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "pooled_projection_dim": 64,
    "text_embed_dim": 64,
}
SMALL_CLIP = ClipSize(19, 160, 208)  # 4 x 10 x 13 tokens
CONDITIONS = ("uncond", "cond")
STORED = Path(__file__).with_suffix(".json")
PARTS = ("counted", "reuse", "clock")
REFRESHES = ("", "uncond=2,perturbed=3", "uncond=3,perturbed=4")
"""Of the table with reuse; the first one is exact."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}
"""The second one does not see what else the machine does."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", nargs="+", help="families to count (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="of the clock")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file; a part that is not made anew stays in it")
    parser.add_argument(
        "--write-readme", action="store_true", help=f"write the tables of {STORED.name} into README.md only"
    )
    options = parser.parse_args()
    if options.write_readme:
        write_readme("bench_cost", stored_tables())
        return
    torch.set_num_threads(options.threads)
    out = options.out
    result = read_stored(out)
    if "counted" in options.parts:
        families = [one for one in all_adapters() if not options.only or one.family in options.only]
        result["counted"] = {"versions": versions(), "rows": counted(families)}
    if "reuse" in options.parts:
        families = [one for one in all_adapters() if not options.only or one.family in options.only]
        result["reuse"] = {"versions": versions(), "rows": counted_with_reuse(families)}
    if "clock" in options.parts:
        result["clock"] = {"versions": versions(), "machine": machine(), **clock(options.rounds)}
    print("\n\n".join(tables(result)))
    if out:
        store(out, "bench_cost", result)


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    return {name: version(name) for name in ("torch", "diffusers")}


def machine() -> dict[str, Any]:
    """What the seconds were taken on."""
    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def counted(families: list[ModelAdapter]) -> list[dict[str, Any]]:
    """FLOPs of a step of every recipe, by family and method."""
    rows = []
    for adapter in families:
        denoiser = full_size_denoiser(adapter)
        recipes = recipes_of(adapter.family)
        for method in tqdm(recipes, desc=adapter.family):
            rows.append(count_recipe(adapter, denoiser, method))
    return rows


def recipe(adapter: ModelAdapter, method: str) -> tuple[ClipSize, Guidance, Step]:
    """The clip and the guidance of a recipe, and a step of its sampling in which it acts."""
    flags: dict[str, Any] = {"model": adapter.family, "guidance": method}
    if adapter.text_to_video is None:
        flags["image"] = "cat.png"
    else:
        flags["prompts"] = ["a cat"]
    job = resolve_job(flags, None, family_of=lambda model, revision: model)
    guidance = job.guidance
    step = Step(job.steps // 2, job.steps, 0.95, pipeline_scales(adapter, job)["video"])
    return ClipSize(job.frames, job.height, job.width), guidance, step


def written(clip: ClipSize) -> str:
    """Frames, height and width."""
    return f"{clip.frames} x {clip.height} x {clip.width}"


def recipes_of(family: str) -> list[str]:
    """The methods that the family's recipe has settings for."""
    return next(entry["methods"] for entry in shipped_files() if entry["name"] == family)


def count_recipe(adapter: ModelAdapter, denoiser: Any, method: str) -> dict[str, Any]:
    """One row: the cost of that step."""
    clip, guidance, step = recipe(adapter, method)

    def flops(plan_of: Guidance, prefix: bool, step: Step = step) -> Any:
        branches = plan_of.plan(step).branches
        return step_cost(adapter, denoiser, clip, branches, reuse=Reuse(prefix=prefix))

    plain = flops(CFG(), True, recipe(adapter, "cfg")[2]).total
    ours = flops(guidance, True)
    whole = flops(guidance, False) if guidance.blocks_used else ours
    return {
        "family": adapter.family,
        "method": method,
        "blocks": list(guidance.blocks_used),
        "clip": written(clip),
        "plain_step_tflops": plain / 1e12,
        "ratio": ours.total / plain,
        "ratio_whole_passes": whole.total / plain,
        "transform_share": ours.transform / ours.total,
    }


def counted_with_reuse(families: list[ModelAdapter]) -> list[dict[str, Any]]:
    """FLOPs of all steps of a clip by the OSEG recipe, over those of plain steps, by family and refresh."""
    rows = []
    for adapter in tqdm([one for one in families if "oseg" in recipes_of(one.family)], desc="reuse"):
        denoiser = full_size_denoiser(adapter)
        clip, guidance, step = recipe(adapter, "oseg")
        known = {frozenset[str](): 0.0}
        plain = step_cost(adapter, denoiser, clip, CFG().plan(step).branches).total
        for refresh in REFRESHES:
            reuse = Reuse(refresh=REFRESH.from_text(refresh) if refresh else ())
            total = 0.0
            for branches in computed_branches(guidance, step, reuse):
                names = frozenset(branches)
                if names not in known:
                    known[names] = step_cost(adapter, denoiser, clip, branches).total
                total += known[names]
            ratio = total / step.count / plain
            rows.append({"family": adapter.family, "refresh": refresh, "steps": step.count, "ratio": ratio})
    return rows


def computed_branches(guidance: Guidance, step: Step, reuse: Reuse) -> Iterator[Mapping[str, Branch]]:
    """The branches that are computed, of every step of a sampling like that of `step`."""
    calendar = Calendar(reuse)
    for index in range(step.count):
        plan = guidance.plan(replace(step, index=index, noise_level=1 - index / step.count))
        due = calendar.due(replace(step, index=index), plan)
        calendar.done(plan, due.branches)
        yield due.branches


def clock(rounds: int) -> dict[str, Any]:
    """Time of one step of a scaled-down Mochi, methods in turn within each round."""
    adapter = adapter_for_class("MochiPipeline")
    import diffusers

    torch.manual_seed(0)
    denoiser = getattr(diffusers, adapter.denoiser_class)(**SMALL).eval()
    arguments = adapter.example_arguments(denoiser, SMALL_CLIP, 2)
    settings: dict[str, tuple[Guidance, bool]] = {
        "CFG": (CFG(), True),
        "STG, whole passes": (STG(blocks=(34,)), False),
        "STG": (STG(blocks=(34,)), True),
        "PAG": (PAG(blocks=(34,)), True),
        "SEG": (SEG(blocks=(34,)), True),
        "OSEG": (OSEG(blocks=(34,)), True),
    }
    step = Step(25, 50, 0.5, 4.5)
    seconds: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in settings} for kind in CLOCKS}
    with torch.inference_mode():
        for round_ in tqdm(range(rounds + 1), desc="clock"):
            for name, (guidance, prefix) in settings.items():
                runner = BranchRunner(adapter, denoiser, guidance.blocks_used, reuse=Reuse(prefix=prefix))
                with runner.active():
                    began = {kind: read() for kind, read in CLOCKS.items()}
                    runner.run(denoiser, arguments, guidance.plan(step).branches, CONDITIONS)
                    if round_:  # the first one warms up
                        for kind, read in CLOCKS.items():
                            seconds[kind][name].append(read() - began[kind])
    return {
        "model": {"class": adapter.denoiser_class, **SMALL},
        "clip": written(SMALL_CLIP),
        "rounds": rounds,
        "cfg_seconds": {kind: statistics.median(taken["CFG"]) for kind, taken in seconds.items()},
        "ratio_to_cfg": {
            name: {kind: ratio_to_cfg(taken[name], taken["CFG"]) for kind, taken in seconds.items()}
            for name in settings
            if name != "CFG"
        },
    }


def ratio_to_cfg(seconds: list[float], cfg: list[float]) -> dict[str, Any]:
    """Median and quartiles of the ratios, round by round."""
    ratios = sorted(own / plain for own, plain in zip(seconds, cfg, strict=True))
    return {
        "median": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
    }


def tables(result: dict[str, Any]) -> list[str]:
    """The results as Markdown."""
    makers = {"counted": counted_table, "reuse": reuse_table, "clock": clock_table}
    return [make(result[part]) for part, make in makers.items() if part in result]


def stored_tables() -> list[str]:
    """What the README has: the tables of the stored results, and what they were made with."""
    stored = json.loads(STORED.read_text())
    return [*tables(stored), made_with(stored)]


def counted_table(counted: dict[str, Any]) -> str:
    """A row for each family: x plain step with reuse (in whole passes) of every perturbed method."""
    families: dict[str, dict[str, Any]] = {}
    for row in counted["rows"]:
        if row["blocks"]:
            families.setdefault(row["family"], {})[row["method"]] = row
    methods = list(dict.fromkeys(name for rows in families.values() for name in rows))
    lines = [markdown("family", "block", *(name.upper() for name in methods), "transform")]
    lines.append("|---" * (len(methods) + 3) + "|")
    for family, rows in families.items():
        costs = [
            f"{rows[name]['ratio']:.3f} ({rows[name]['ratio_whole_passes']:.3f})" if name in rows else "-"
            for name in methods
        ]
        largest = max(row["transform_share"] for row in rows.values())
        lines.append(markdown(family, block_names(rows), *costs, f"{largest:.3%}"))
    return "\n".join(lines)


def reuse_table(found: dict[str, Any]) -> str:
    """A row for each family, a column for each refresh."""
    ratios: dict[str, list[str]] = {}
    for row in found["rows"]:
        ratios.setdefault(row["family"], []).append(f"{row['ratio']:.3f}")
    lines = [markdown("OSEG, mean of all steps", *(one or "exact" for one in REFRESHES))]
    lines.append("|---" * (len(REFRESHES) + 1) + "|")
    return "\n".join([*lines, *(markdown(family, *cells) for family, cells in ratios.items())])


def block_names(rows: dict[str, Any]) -> str:
    """The blocks of a family's recipes: once where all methods have the same, else by method."""
    methods: dict[str, list[str]] = {}
    for method, row in rows.items():
        methods.setdefault(ranges(row["blocks"]), []).append(method.upper())
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{', '.join(names)}: {blocks}" for blocks, names in methods.items())


def ranges(blocks: Sequence[int | str]) -> str:
    """Three and more in a row as "first to last"."""
    runs: list[list[int | str]] = []
    for block in blocks:
        last = runs[-1][-1] if runs else None
        if isinstance(block, int) and isinstance(last, int) and block == last + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    said = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(said)


def clock_table(clock: dict[str, Any]) -> str:
    """A row for each method: its time against CFG's, median [quartiles]."""
    lines = [markdown("seconds of a step against CFG", *CLOCKS), "|---" * (len(CLOCKS) + 1) + "|"]
    for name, ratios in clock["ratio_to_cfg"].items():
        lines.append(markdown(name, *(spread(ratios[kind]) for kind in CLOCKS)))
    return "\n".join(lines)


def spread(ratio: dict[str, Any]) -> str:
    """Median [quartiles]."""
    low, high = ratio["quartiles"]
    return f"{ratio['median']:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
