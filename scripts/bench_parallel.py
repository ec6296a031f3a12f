"""What ranks that make one clip together compute and send: counted on paper; seconds if there are devices.

    python scripts/bench_parallel.py --out scripts/bench_parallel.json
    torchrun --nproc-per-node 4 scripts/bench_parallel.py --clock
    python scripts/bench_parallel.py --write-readme      # the stored numbers into scripts/README.md

Counted: one guided step of the recipes of CFG, STG and OSEG, at full size and at the clip size that the
recipe sets, on the meta device in bfloat16, so for any number of ranks without one of them. FLOPs (matrix
products, convolutions, attention; two operations per multiply-add) of the busiest rank, and bytes of the rank
that sends most: tokens, heads and keys in every block, the last block's output, the predictions of its
branches. What is sent once a clip, and the 16 bytes that compare the latents at each step, do not count.

Clock: seconds of one step on as many ranks as torchrun has started, layouts in turn within each round, and of
one rank that makes the step alone meanwhile. With GPUs over NCCL at full size, random weights, bfloat16; else
over gloo with a scaled-down Mochi, which shows that it runs and nothing more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_cost import SMALL, SMALL_CLIP, machine, recipe, versions, written
from flops import StepCost, run_step, step_cost
from marked import made_with, markdown, read_stored, store, write_readme
from tqdm import tqdm

from oseg_video.adapters import ClipSize, ModelAdapter, all_adapters
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.plan import Branch
from oseg_video.jobs.loading.meta import full_size_denoiser
from oseg_video.jobs.ranks import Ranks
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.mesh import ONE_RANK, Mesh, device_type

STORED = Path(__file__).with_suffix(".json")
METHODS = ("cfg", "stg", "oseg")
RANKS = (2, 4, 8, 16)
LAYOUTS: dict[str, dict[int, str]] = {
    "ulysses": {count: f"ulysses={count}" for count in RANKS},
    "ring": {count: f"ring={count}" for count in RANKS},
    "ring x ulysses": {4: "ring=2,ulysses=2", 8: "ring=2,ulysses=4", 16: "ring=4,ulysses=4"},
    "branch x ulysses": {2: "branch=2", **{n: f"branch=2,ulysses={n // 2}" for n in RANKS[1:]}},
}
"""Degrees by kind of layout and number of ranks."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [one for one in all_adapters() if one.sequence_parallel]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[one.family for one in known],
        help="families (default: all that have a sequence to share)",
    )
    parser.add_argument("--clock", action="store_true", help="take seconds on the ranks of torchrun")
    parser.add_argument("--rounds", type=int, default=5, help="of the clock")
    parser.add_argument("--out", type=Path, help="JSON file; rows not made anew stay in it")
    parser.add_argument(
        "--write-readme", action="store_true", help=f"write the tables of {STORED.name} into README.md only"
    )
    options = parser.parse_args()
    if options.write_readme:
        write_readme("bench_parallel", stored_tables())
        return
    families = [one for one in known if not options.only or one.family in options.only]
    out = options.out
    result = read_stored(out)
    ranks = Ranks.started()
    if options.clock and ranks.size not in RANKS:
        parser.error(f"--clock needs torchrun with one of {RANKS} ranks, got {ranks.size}")
    if options.clock:
        device = ranks.device("cuda" if torch.cuda.is_available() else "cpu")
        with ranks.joined(device):
            result["clock"] = clock(families, torch.device(device), options.rounds)
        save(result, out if ranks.rank == 0 else None)
    else:
        for row in counted(families):
            result["counted"] = with_row(result.get("counted"), row)
            save(result, out)  # a row takes minutes
    if ranks.rank == 0:
        print("\n\n".join(tables(result)))


def save(result: Mapping[str, Any], out: Path | None) -> None:
    """Write the file, whole or not at all."""
    if out:
        store(out, "bench_parallel", result)


def counted(families: Iterable[ModelAdapter]) -> Iterator[dict[str, Any]]:
    """A row for each family and method."""
    for adapter in families:
        denoiser = full_size_denoiser(adapter).bfloat16()
        for method in METHODS:
            yield count_recipe(adapter, denoiser, method)


def with_row(counted: Mapping[str, Any] | None, row: dict[str, Any]) -> dict[str, Any]:
    """The counted part with this row in its place; without those that other versions have counted."""
    now = versions()
    old = counted["rows"] if counted and counted["versions"] == now else []
    rows = {(one["family"], one["method"]): one for one in [*old, row]}
    order = [(adapter.family, method) for adapter in all_adapters() for method in METHODS]
    return {"versions": now, "rows": [rows[key] for key in order if key in rows]}


def count_recipe(
    adapter: ModelAdapter, denoiser: Any, method: str, ranks: Iterable[int] = RANKS
) -> dict[str, Any]:
    """One row: what a rank has to do in every layout of so many ranks."""
    clip, guidance, step = recipe(adapter, method)
    branches = guidance.plan(step).branches
    alone = step_cost(adapter, denoiser, clip, branches).total
    layouts = {}
    for text in tqdm(usable(adapter, denoiser, branches, ranks), desc=f"{adapter.family} {method}"):
        degrees = Degrees.parse(text)
        costs = [
            step_cost(adapter, denoiser, clip, branches, degrees=degrees, branch_rank=rank)
            for rank in range(degrees.branch)
        ]
        busiest = max(cost.total for cost in costs)
        layouts[text] = {
            "ranks": degrees.ranks,
            "tflops": busiest / 1e12,
            "flops_divided_by": alone / busiest,
            "sent_gb": {name: size / 1e9 for name, size in max(costs, key=sent).sent.items()},
        }
    return {
        "family": adapter.family,
        "method": method,
        "clip": written(clip),
        "branches": list(branches),
        "tflops_alone": alone / 1e12,
        "layouts": layouts,
    }


def sent(cost: StepCost) -> int:
    """Bytes by all collectives."""
    return sum(cost.sent.values())


def usable(
    adapter: ModelAdapter, denoiser: Any, branches: Mapping[str, Branch], ranks: Iterable[int]
) -> list[str]:
    """The layouts in which every rank has a branch and a head."""
    first = adapter.blocks(denoiser)[0]
    heads = adapter.site(denoiser.get_submodule(first.path), first).attention.heads
    layouts = [kind[count] for count in ranks for kind in LAYOUTS.values() if count in kind]
    return [
        text
        for text in layouts
        if (degrees := Degrees.parse(text)).branch <= len(branches) and degrees.ulysses <= heads
    ]


def clock(families: Iterable[ModelAdapter], device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds of a step on the ranks that are running, by family, method and layout."""
    full_size = device.type == "cuda"
    rows = []
    for adapter in families:
        if not full_size and adapter.family != "mochi":
            continue
        denoiser = random_denoiser(adapter, device, {} if full_size else SMALL)
        for method in METHODS:
            clip, guidance, step = recipe(adapter, method)
            clip = clip if full_size else SMALL_CLIP
            seconds = time_layouts(adapter, denoiser, clip, guidance.plan(step).branches, rounds)
            row = {"family": adapter.family, "method": method, "clip": written(clip), "seconds": seconds}
            rows.append(row)
    name = torch.cuda.get_device_name() if full_size else "cpu"
    return {
        "versions": versions(),
        "machine": machine(),
        "device": name,
        "ranks": dist.get_world_size(),
        "rounds": rounds,
        "model": "full size" if full_size else SMALL,
        "rows": rows,
    }


def random_denoiser(adapter: ModelAdapter, device: torch.device, sizes: Mapping[str, Any]) -> Any:
    """A denoiser with random weights, the same on all ranks."""
    import diffusers

    torch.manual_seed(0)
    with device:
        denoiser = getattr(diffusers, adapter.denoiser_class)(**{**adapter.full_size, **sizes})
    return (denoiser.bfloat16() if device.type == "cuda" else denoiser).eval()


def time_layouts(
    adapter: ModelAdapter, denoiser: Any, clip: ClipSize, branches: Mapping[str, Branch], rounds: int
) -> dict[str, float]:
    """Median seconds of one step by layout; "one rank" is rank 0 alone."""
    ranks = Ranks.started()
    kind = device_type(denoiser.device)
    meshes = {text: make_mesh(text, kind) for text in usable(adapter, denoiser, branches, [ranks.size])}
    meshes["one rank"] = ONE_RANK
    arguments = adapter.example_arguments(denoiser, clip, 2)
    selectors = [b for one in branches.values() if one.perturbation for b in one.perturbation.blocks]
    seconds: dict[str, list[float]] = {text: [] for text in meshes}
    for round_ in tqdm(range(rounds + 1), desc=f"{adapter.family}", disable=ranks.rank > 0):
        for text, mesh in meshes.items():
            runner = BranchRunner(adapter, denoiser, selectors, sequence=mesh.sequence)
            with runner.active(), torch.inference_mode():
                together()
                began = time.perf_counter()
                if mesh is not ONE_RANK or ranks.rank == 0:
                    run_step(adapter, denoiser, runner, arguments, branches, mesh.branch)
                together()
            if round_:  # the first one warms up
                seconds[text].append(time.perf_counter() - began)
    return {text: statistics.median(taken) for text, taken in seconds.items()}


@cache  # process groups stay
def make_mesh(layout: str, device: str) -> Mesh:
    """The mesh of all ranks with these degrees."""
    return Mesh.of(Degrees.parse(layout), device)


def together() -> None:
    """Wait until all ranks have come here, with all that their devices have to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier()


def tables(result: Mapping[str, Any]) -> list[str]:
    """The results as Markdown."""
    makers: dict[str, Callable[[Any], list[str]]] = {"counted": counted_tables, "clock": clock_tables}
    return [table for part, make in makers.items() if part in result for table in make(result[part])]


def stored_tables() -> list[str]:
    """What the README has: the tables of the stored results, and what they were made with."""
    stored = json.loads(STORED.read_text())
    return [*tables(stored), made_with(stored)]


def counted_tables(counted: Mapping[str, Any]) -> list[str]:
    """OSEG on every number of ranks with Mochi, then on 8 ranks with every family."""
    rows = {row["family"]: row["layouts"] for row in counted["rows"] if row["method"] == "oseg"}
    made = []
    if "mochi" in rows:
        made.append(table("ranks", LAYOUTS, {str(n): layouts_of(rows["mochi"], n) for n in RANKS}))
    headers = [kind[8] for kind in LAYOUTS.values()]
    return [*made, table("8 ranks", headers, {family: layouts_of(row, 8) for family, row in rows.items()})]


def layouts_of(layouts: Mapping[str, Any], ranks: int) -> list[Any]:
    """Of every kind of layout; None where there is none for so many ranks."""
    return [layouts.get(kind.get(ranks, "")) for kind in LAYOUTS.values()]


def table(first: str, headers: Iterable[str], lines: Mapping[str, list[Any]]) -> str:
    """A cell: FLOPs of one rank alone over those of the busiest rank, and what a rank sends."""
    made = [markdown(first, *headers), "|---" * (len(LAYOUTS) + 1) + "|"]
    for name, costs in lines.items():
        made.append(markdown(name, *map(cell, costs)))
    return "\n".join(made)


def cell(cost: Mapping[str, Any] | None) -> str:
    """Empty where there is no such layout."""
    if cost is None:
        return ""
    return f"{cost['flops_divided_by']:.2f}, {sum(cost['sent_gb'].values()):.2f} GB"


def clock_tables(clock: Mapping[str, Any]) -> list[str]:
    """Seconds by layout."""
    lines = []
    for row in clock["rows"]:
        seconds = ", ".join(f"{text} {taken:.3g}" for text, taken in row["seconds"].items())
        lines.append(f"{row['family']} {row['method']}, seconds: {seconds}")
    return ["\n".join(lines)]


if __name__ == "__main__":
    main()
