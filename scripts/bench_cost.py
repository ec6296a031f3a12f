"""What guidance costs: counted FLOPs at full size, and wall clock on a scaled-down model.

    python scripts/bench_cost.py --out scripts/bench_cost.json
    python scripts/bench_cost.py --only mochi ltx --no-clock

Counted: one guided step of every recipe (`configs/FAMILY-METHOD.yaml`) at the size that the recipe sets, on
the meta device, with and without prefix reuse, against the same pipeline's plain step (CFG where it runs an
unconditional branch). Matrix products, convolutions and attention count, two operations per multiply-add.
Measured: seconds of one step of a Mochi with all its 48 blocks but small ones, methods in turn within each
round, as ratios to CFG in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from oseg_video.adapters import ClipSize, ModelAdapter, adapter_for_class, all_adapters
from oseg_video.config import build_guidance, recipe_names, resolve_job
from oseg_video.guidance.methods import CFG, METHODS, OSEG, PAG, SEG, STG, Guidance
from oseg_video.guidance.plan import Step
from oseg_video.media import write_text
from oseg_video.runtime.branches import BranchRunner
from oseg_video.runtime.cost import step_cost
from oseg_video.runtime.counted import pipeline_scale
from oseg_video.runtime.empty import full_size_denoiser

SMALL = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "pooled_projection_dim": 64,
    "text_embed_dim": 64,
}
SMALL_CLIP = ClipSize(19, 160, 208)  # 4 x 10 x 13 tokens
CONDITIONS = ("uncond", "cond")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="families (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="of the wall clock")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-clock", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    families = [one for one in all_adapters() if not options.only or one.family in options.only]
    result: dict[str, Any] = {"machine": machine(options.threads), "counted": counted(families)}
    if not options.no_clock:
        result["clock"] = clock(options.rounds)
    print(table(result))
    if options.out:
        write_text(options.out, json.dumps(result, indent=1) + "\n")


def machine(threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }


def counted(families: list[ModelAdapter]) -> list[dict[str, Any]]:
    """FLOPs of a step of every recipe, by family and method."""
    rows = []
    for adapter in families:
        denoiser = full_size_denoiser(adapter)
        recipes = [name for name in METHODS if f"{adapter.family}-{name}" in recipe_names()]
        for method in tqdm(recipes, desc=adapter.family):
            rows.append(count_recipe(adapter, denoiser, method))
    return rows


def count_recipe(adapter: ModelAdapter, denoiser: Any, method: str) -> dict[str, Any]:
    """One row: the cost of a step in the middle of sampling."""
    flags: dict[str, Any] = {"model": adapter.family, "guidance": method}
    if adapter.text_to_video is None:
        flags["image"] = "cat.png"
    else:
        flags["prompts"] = ["a cat"]
    job = resolve_job(flags, None, family_of=lambda model, revision: model)
    guidance = build_guidance(job)
    scale = pipeline_scale(adapter, job, guidance)
    clip = ClipSize(job.frames, job.height, job.width)

    def flops(plan_of: Guidance, reuse_prefix: bool) -> Any:
        branches = plan_of.plan(Step(job.steps // 2, job.steps, 0.5, scale)).branches
        return step_cost(adapter, denoiser, clip, branches, reuse_prefix=reuse_prefix)

    plain = flops(CFG(), True).total
    ours = flops(guidance, True)
    whole = flops(guidance, False) if guidance.blocks_used else ours
    return {
        "family": adapter.family,
        "method": method,
        "blocks": list(guidance.blocks_used),
        "clip": f"{job.frames} x {job.height} x {job.width}",
        "plain_step_tflops": plain / 1e12,
        "ratio": ours.total / plain,
        "ratio_whole_passes": whole.total / plain,
        "transform_share": ours.transform / ours.total,
    }


def clock(rounds: int) -> dict[str, Any]:
    """Seconds of one step of a scaled-down Mochi, methods in turn within each round."""
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
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    step = Step(25, 50, 0.5, 4.5)
    with torch.inference_mode():
        for round_ in tqdm(range(rounds + 1), desc="wall clock"):
            for name, (guidance, reuse) in settings.items():
                runner = BranchRunner(adapter, denoiser, guidance.blocks_used, reuse_prefix=reuse)
                with runner.active():
                    began = time.perf_counter()
                    runner.run(denoiser, arguments, guidance.plan(step).branches, CONDITIONS)
                    if round_:  # the first one warms up
                        seconds[name].append(time.perf_counter() - began)
    ratios = {
        name: sorted(own / cfg for own, cfg in zip(values, seconds["CFG"], strict=True))
        for name, values in seconds.items()
    }
    return {
        "model": {"class": adapter.denoiser_class, **SMALL},
        "clip": f"{SMALL_CLIP.frames} x {SMALL_CLIP.height} x {SMALL_CLIP.width}",
        "rounds": rounds,
        "cfg_seconds": statistics.median(seconds["CFG"]),
        "ratio_to_cfg": {
            name: {
                "median": statistics.median(values),
                "quartiles": [values[len(values) // 4], values[-1 - len(values) // 4]],
            }
            for name, values in ratios.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| family | method | blocks | TFLOPs of a plain step | x plain step | x, whole passes | transform |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["counted"]:
        blocks = ", ".join(map(str, row["blocks"]))
        lines.append(
            f"| {row['family']} | {row['method']} | {blocks} | {row['plain_step_tflops']:,.0f} | "
            f"{row['ratio']:.3f} | {row['ratio_whole_passes']:.3f} | {row['transform_share']:.3%} |"
        )
    if "clock" in result:
        lines += ["", "| method | seconds of a step against CFG: median [quartiles] |", "|---|---|"]
        for name, ratio in result["clock"]["ratio_to_cfg"].items():
            low, high = ratio["quartiles"]
            lines.append(f"| {name} | {ratio['median']:.2f} [{low:.2f}, {high:.2f}] |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
