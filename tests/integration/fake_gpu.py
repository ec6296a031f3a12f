"""Guided steps of every family's denoiser on a GPU that is none: what mixes devices fails as it would there.

After the first step of a sampling nothing of ours is copied from main memory to the GPU.

`FakeTensorMode` makes tensors without values that say they are on some device. But a build of torch for CPUs
knows nothing of CUDA, so the device is one that Python may describe. It is torch's for the rest of the
process: run this in one of its own, `python -m tests.integration.fake_gpu`, with `scripts` on its path.
Prints what went wrong, family by family.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

import torch
from steps import guided_steps
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from oseg_video import CFG, OSEG, PAG, SAG, SEG, STG, Reuse
from oseg_video.adapters import adapter_for
from oseg_video.adapters.base import ClipSize, ModelAdapter
from oseg_video.guidance import attended
from oseg_video.guidance.methods import Guidance
from tests.integration.families import COGVIDEOX, HUNYUAN, HUNYUAN15, LTX, MOCHI, SDXL, SVD, WAN, Case


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_setup_privateuseone_for_python_backend("gpu", backend_module=_Backend())
GPU = torch.device("gpu:0")
_aten = torch.ops.aten


def moved(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The module with its weights on the fake GPU, for good."""
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for name, x in kind.items():
                if x is not None:
                    fake = mode.from_tensor(x.detach()).to(GPU)
                    is_weight = isinstance(x, nn.Parameter)
                    kind[name] = nn.Parameter(fake, requires_grad=False) if is_weight else fake
    return module


class SomeValues(TorchDispatchMode):
    """Whoever asks for a value gets one: conditions hold, numbers are 1, all tokens are valid."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1
        if func is _aten.equal.default:
            assert args[0].device == args[1].device
            return False
        if func is _aten.nonzero.default:
            return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.int64)
        if func is _aten.index.Tensor:
            args = args[0], [_whole(one) for one in args[1]]
        return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Lines of this package that copy from main memory to the GPU, in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.seen: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        source = {_aten._to_copy.default: 0, _aten.copy_.default: 1}.get(func)
        if source is not None and args[source].device.type == "cpu" and out.device == GPU:
            frame = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename and frame.f_back is not None:
                frame = frame.f_back
            if "/oseg_video/" in frame.f_code.co_filename:
                self.seen.append((self.step, f"{frame.f_code.co_filename}:{frame.f_lineno}"))
        return out


def _whole(index: Tensor | None) -> Tensor | None:
    """Integers for a mask over one dimension."""
    if index is None or index.dtype != torch.bool:
        return index
    assert index.ndim == 1
    return torch.arange(len(index), device=index.device)


_FAMILIES = (MOCHI, LTX, WAN, COGVIDEOX, SVD, SDXL, HUNYUAN, HUNYUAN15)
_SHARED = {"guidance_scale": 3.0, "blocks": (2,)}
_REFRESH = {"uncond": 2, "perturbed": 2}


def runs(adapter: ModelAdapter, denoiser: nn.Module) -> list[tuple[Guidance, Reuse, int]]:
    """Methods, what they reuse, and the number of steps in which that shows."""
    methods = (CFG(guidance_scale=3.0), *(method(**_SHARED) for method in (STG, PAG, SEG, OSEG)))
    oseg = methods[-1]
    estimated = Reuse(refresh=_REFRESH, cache=0.1 if adapter.blocks.chained else 0.0)
    reused = (oseg, Reuse(prefix=False), 1), (oseg, estimated, 3)
    maps = adapter.attention_maps(denoiser)
    sag = [(SAG(guidance_scale=3.0, blocks=(maps[0].index,)), Reuse(), 2)] if maps else []
    return [*((method, Reuse(), 1) for method in methods[:-1]), (oseg, Reuse(), 2), *sag, *reused]


def check(case: Case) -> None:
    """Raises if a guided step mixes devices, answers on another one, or copies what the first one has."""
    pipe = case.build()
    adapter = adapter_for(pipe)
    size = {"num_frames": 1} | case.size
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad(), SomeValues():
        attended._kept_matrix.cache_clear()  # of the family before
        denoiser = moved(getattr(pipe, adapter.denoiser_attributes[0]), mode)
        clip = ClipSize(size["num_frames"], size["height"], size["width"])
        arguments = adapter.example_arguments(denoiser, clip, 2)
        for guidance, reuse, steps in runs(adapter, denoiser):
            with Copies() as copies:
                for answer in guided_steps(adapter, denoiser, arguments, guidance, reuse, steps):
                    assert answer.device == GPU, (guidance, reuse, answer.device)
                    copies.step += 1
            if isinstance(guidance, SAG):
                assert copies.seen  # the counter counts
            late = [line for step, line in copies.seen if step > 0]
            assert not late, (guidance, reuse, late)


def main() -> int:
    failed = 0
    for case in _FAMILIES:
        try:
            check(case)
            print(case.name, "ok")
        except Exception:
            failed += 1
            print(case.name, traceback.format_exc())
    return failed


if __name__ == "__main__":
    sys.exit(main())
