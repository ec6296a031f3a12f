"""What guidance costs in memory: bytes of activations that live at once in a step, at full size.

    python scripts/count_memory.py
    python scripts/count_memory.py --only mochi wan

The branches of the condition in one step of a family's recipes, at the size that they set, on the meta
device, in bfloat16: the peak of what denoiser and engine hold, as a ratio to the plain pass; in brackets with
the denoiser's weights. That is the narrowest case: where a pipeline calls once for both conditions, its CFG
takes twice as much. What kernels need for themselves (attention's, the matrix library's) is not in it, nor
what decoding takes.
"""

import argparse

import torch
from bench_cost import recipe, written
from marked import markdown

from oseg_video.adapters import ModelAdapter, all_adapters
from oseg_video.jobs.activations import activation_bytes, in_dtype
from oseg_video.jobs.loading.meta import full_size_denoiser

METHODS = ("cfg", "stg", "oseg")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="families to count (default: all)")
    options = parser.parse_args()
    print(markdown("family", "clip", "plain", "weights", *(name.upper() for name in METHODS[1:])))
    print("|---" * (len(METHODS) + 3) + "|")
    for adapter in all_adapters():
        if not options.only or adapter.family in options.only:
            print(row(adapter), flush=True)


def row(adapter: ModelAdapter) -> str:
    """GiB of the plain pass and of the weights; what methods take of the first, and of both together."""
    denoiser = in_dtype(full_size_denoiser(adapter), torch.bfloat16)
    peaks = {}
    for method in METHODS:
        clip, guidance, step = recipe(adapter, method)
        plan = guidance.plan(step).branches
        branches = {name: branch for name, branch in plan.items() if branch.condition == "cond"}
        peaks[method] = activation_bytes(adapter, denoiser, clip, [branches], uncond=False)
    plain, weights = peaks.pop("cfg"), sum(one.nbytes for one in denoiser.parameters())
    ratios = [f"{one / plain:.3f} ({(one + weights) / (plain + weights):.3f})" for one in peaks.values()]
    sizes = (f"{size / 2**30:.2f} GiB" for size in (plain, weights))
    return markdown(adapter.family, written(clip), *sizes, *ratios)


if __name__ == "__main__":
    main()
