"""What guidance costs in memory: bytes of activations that live at once in a step, at full size.

    python scripts/count_memory.py
    python scripts/count_memory.py --only mochi wan

The branches of one step of a family's recipes, called as the pipeline calls its denoiser (for both conditions
at once, or once for each), at the size that the recipes set, on the meta device, in bfloat16: the peak of
what denoiser and engine hold beside the weights, as a ratio to the same pipeline's CFG; in brackets without
the weights. What kernels need for themselves (attention's, the matrix library's) is not in it, nor what
decoding takes.
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
    print(markdown("family", "clip", "weights", *(name.upper() for name in METHODS)))
    print("|---" * (len(METHODS) + 3) + "|")
    for adapter in all_adapters():
        if not options.only or adapter.family in options.only:
            print(row(adapter), flush=True)


def row(adapter: ModelAdapter) -> str:
    """GiB of the weights and of CFG; what methods take of both together, and of the second."""
    denoiser = in_dtype(full_size_denoiser(adapter), torch.bfloat16)
    peaks = {}
    for method in METHODS:
        clip, guidance, step = recipe(adapter, method)
        branches = guidance.plan(step).branches
        uncond = any(branch.condition == "uncond" for branch in branches.values())
        peaks[method] = activation_bytes(adapter, denoiser, clip, [branches], uncond=uncond)
    cfg, weights = peaks.pop("cfg"), sum(one.nbytes for one in denoiser.parameters())
    ratios = [f"{(one + weights) / (cfg + weights):.3f} ({one / cfg:.3f})" for one in peaks.values()]
    sizes = (f"{size / 2**30:.2f} GiB" for size in (weights, cfg))
    return markdown(adapter.family, written(clip), *sizes, *ratios)


if __name__ == "__main__":
    main()
