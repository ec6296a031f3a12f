"""What guidance costs on a GPU: seconds of a step and peak memory at full size, with random weights.

    python scripts/bench_gpu.py --out gpu.json            # Mochi, at most ten minutes; again to go on
    python scripts/bench_gpu.py --out gpu.json --family wan
    python scripts/bench_gpu.py --out tiny.json --tiny    # the same on a CPU, of a small model

Steps of the family's recipes, without text encoder and decoder: the stock call with plain text guidance,
ours, STG as three whole passes, OSEG, and OSEG that reuses predictions (unconditional every 2nd step,
perturbed every 3rd; the mean over six steps), with eager and with compiled blocks. Then the change of the
queries alone: bytes that it must read and write (queries, keys, queries) a second. Weights are random, so
predictions mean nothing. Each result is written as soon as it is there, and made once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench_cost import SMALL, SMALL_CLIP, recipe, versions, written
from steps import CONDITIONS, guided_steps

from oseg_video.adapters import ClipSize, ModelAdapter, all_adapters
from oseg_video.files import write_text
from oseg_video.guidance.methods import CFG, OSEG, STG, Guidance
from oseg_video.guidance.reuse import EXACT, Reuse

WHOLE = Reuse(prefix=False)
REUSED = Reuse(refresh={"uncond": 2, "perturbed": 3})
CYCLE = 6
"""Steps after which REUSED computes all branches again."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file; what is in it is not made anew")
    parser.add_argument("--family", default="mochi")
    parser.add_argument(
        "--seconds", type=float, default=570, help="begin nothing after so many (default 570)"
    )
    parser.add_argument("--tiny", action="store_true", help="a small Mochi on the CPU")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --tiny runs on a CPU")
    ends = time.monotonic() + options.seconds
    out: Path = options.out
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    bench = Bench(options.family, options.tiny)
    described = bench.described()
    if any(result.get(name, value) != value for name, value in described.items()):
        parser.error(f"{out} has other results ({result.get('family')} on {result.get('device')})")
    result |= described
    done = result.setdefault("results", {})
    for name, measure in bench.measurements():
        if name in done:
            continue
        if time.monotonic() > ends:
            print("out of time; the same command goes on")
            break
        try:
            done[name] = measure()
        except torch.OutOfMemoryError:
            done[name] = {"failed": "out of memory"}
        print(name, json.dumps(done[name]), flush=True)
        write_text(out, json.dumps(result, indent=1) + "\n")


class Bench:
    """A family's denoiser on the device, and what is measured on it."""

    def __init__(self, family: str, tiny: bool) -> None:
        self.adapter: ModelAdapter = {one.family: one for one in all_adapters()}[family]
        self.tiny = tiny
        self.device = torch.device("cpu" if tiny else "cuda:0")
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.clip: ClipSize = SMALL_CLIP
        self.methods: dict[str, Guidance] = {"STG": STG(blocks=(2,)), "OSEG": OSEG(blocks=(2,))}
        if not tiny:
            self.clip, self.methods["OSEG"], _ = recipe(self.adapter, "oseg")
            self.methods["STG"] = recipe(self.adapter, "stg")[1]
        self._denoiser: Any = None
        self._arguments: dict[str, Any] = {}

    def described(self) -> dict[str, Any]:
        """What the results are of."""
        name = "CPU" if self.tiny else torch.cuda.get_device_name(self.device)
        return {
            "made_by": "oseg-video",
            "family": self.adapter.family,
            "clip": written(self.clip),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": name,
            "versions": versions(),
        }

    def measurements(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Each with its name. The compiled ones are last: blocks stay compiled."""
        oseg = self.methods["OSEG"]
        runs: dict[str, tuple[Guidance | None, Reuse]] = {
            "stock CFG": (None, EXACT),
            "CFG": (CFG(), EXACT),
            "STG, whole passes": (self.methods["STG"], WHOLE),
            "OSEG": (oseg, EXACT),
            "OSEG, reuse": (oseg, REUSED),
        }
        for name, (guidance, reuse) in runs.items():
            yield name, lambda guidance=guidance, reuse=reuse: self.step(guidance, reuse)
        yield "transform", self.transform
        for name, (guidance, reuse) in runs.items():
            yield f"{name}, compiled", lambda guidance=guidance, reuse=reuse: self.compiled(guidance, reuse)

    def load(self) -> tuple[Any, dict[str, Any]]:
        """The denoiser and the arguments of its call."""
        if self._denoiser is None:
            import diffusers

            torch.manual_seed(0)
            config = {**SMALL, "num_layers": 4} if self.tiny else self.adapter.full_size
            torch.set_default_dtype(self.dtype)
            try:
                with self.device:
                    self._denoiser = getattr(diffusers, self.adapter.denoiser_class)(**config).eval()
            finally:
                torch.set_default_dtype(torch.float32)
            self._arguments = self.adapter.example_arguments(self._denoiser, self.clip, len(CONDITIONS))
        return self._denoiser, self._arguments

    @torch.no_grad()
    def step(self, guidance: Guidance | None, reuse: Reuse) -> dict[str, Any]:
        """Seconds of a step, and the peak of the memory that torch took; None stands for diffusers' own."""
        denoiser, arguments = self.load()
        if guidance is None:
            steps = (stock_step(denoiser, arguments) for _ in range(CYCLE + 2))
        else:
            # One step more: the last one of a sampling run computes every branch.
            steps = guided_steps(self.adapter, denoiser, arguments, guidance, reuse, CYCLE + 2)
        next(steps)  # warms up
        if not self.tiny:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = [self.timed(lambda: next(steps)) for _ in range(CYCLE)]
        return {
            "seconds": statistics.fmean(seconds),
            "each": seconds,
            "peak_bytes": None if self.tiny else torch.cuda.max_memory_allocated(self.device),
        }

    def compiled(self, guidance: Guidance | None, reuse: Reuse) -> dict[str, Any]:
        """The same with compiled blocks."""
        denoiser, _ = self.load()
        first = denoiser.get_submodule(self.adapter.blocks(denoiser)[0].path)
        if first._compiled_call_impl is None:
            self.adapter.compile_blocks(denoiser, **({"backend": "eager"} if self.tiny else {}))
        return self.step(guidance, reuse)

    @torch.no_grad()
    def transform(self) -> dict[str, Any]:
        """The change of one block's queries, one head at a time as at full size."""
        denoiser, arguments = self.load()
        (address, *_) = self.adapter.resolve_blocks(denoiser, self.methods["OSEG"].blocks_used)
        grid = self.adapter.video_tokens(denoiser, arguments, address).grid
        attention = self.adapter.site(denoiser.get_submodule(address.path), address).attention
        channels = attention.to_q.out_features // attention.heads
        shape = 1, attention.heads, grid.tokens, channels
        query_BNSD, key_BNSD = (torch.randn(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        change: Any = self.methods["OSEG"].change  # type: ignore[attr-defined]

        def run() -> None:
            for head in zip(query_BNSD.split(1, 1), key_BNSD.split(1, 1), strict=True):
                change(*head, grid)

        run()
        seconds = statistics.median(self.timed(run) for _ in range(5))
        return {"seconds": seconds, "bytes_per_second": 3 * query_BNSD.nbytes / seconds}

    def timed(self, run: Callable[[], Any]) -> float:
        """Seconds until the device has done it."""
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if not self.tiny:
            torch.cuda.synchronize(self.device)


def stock_step(denoiser: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """A pipeline's own step: one call for both conditions, and their combination."""
    uncond, cond = denoiser(**arguments, return_dict=False)[0].chunk(2)
    combined: torch.Tensor = uncond + 4.5 * (cond - uncond)
    return combined


if __name__ == "__main__":
    main()
