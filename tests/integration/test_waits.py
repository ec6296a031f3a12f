"""After a run's first step nothing of ours asks a tensor for its values: a GPU's program runs ahead of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from oseg_video import APG, CFG, NAG, OSEG, STG, guided
from oseg_video.adapters import adapter_for
from oseg_video.adapters.base import ClipSize
from oseg_video.engine.branches import BranchRunner
from oseg_video.guidance.plan import Branch
from tests.integration.checks import ACROSS_BATCHES
from tests.integration.families import CASES, HUNYUAN, LTX, MOCHI, SVD, WAN, Case, over, quiet

_aten = torch.ops.aten
# A condition, `item`, `float`, `int`; sizes that depend on values; comparisons that give a Python bool.
_READING = (
    *(_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default),
    *(_aten.masked_select.default, _aten._unique2.default, _aten.unique_dim.default),
)
_BLOCK = 2
_METHODS = {
    "cfg": CFG(guidance_scale=3.0),
    "stg": STG(guidance_scale=3.0, blocks=(_BLOCK,)),
    "oseg": OSEG(guidance_scale=3.0, blocks=(_BLOCK,)),
    "nag": NAG(),
}


class Waits(TorchDispatchMode):
    """Where values of tensors are read: what asks, and the line that asked, in each step."""

    def __init__(self, step: Callable[[], int]) -> None:
        super().__init__()
        self.step = step
        self.seen: Counter[tuple[int, str, str]] = Counter()

    def note(self, what: str) -> None:
        frame = sys._getframe(2)
        while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
            assert frame.f_back is not None
            frame = frame.f_back
        self.seen[self.step(), what, f"{frame.f_code.co_filename}:{frame.f_lineno}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = args[1] if func is _aten.index.Tensor else ()
        by_mask = any(one is not None and one.dtype == torch.bool for one in chosen)
        if func in _READING or by_mask:
            self.note(str(func))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def counted(self) -> Iterator[Waits]:
        """Count while this is open; `tolist`, `numpy` and `cpu` of the CPU go past the dispatcher."""
        patches = [
            patch.object(Tensor, name, self._noting(name)) for name in ("tolist", "numpy", "cpu", "__array__")
        ]
        with self, patches[0], patches[1], patches[2], patches[3]:
            yield self

    def _noting(self, name: str) -> Any:
        original = getattr(Tensor, name)

        def noted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.note(name)
            return original(x, *args, **kwargs)

        return noted

    def ours(self, *, first: bool) -> dict[str, int]:
        """Those that this package asked for, in the first step or after it."""
        return {
            f"{what} at {line}": count
            for (step, what, line), count in self.seen.items()
            if "/oseg_video/" in line and (step == 0) is first
        }


def waits_of(case: Case, pipe: Any, guidance: Any, **overrides: Any) -> Waits:
    with guided(pipe, guidance) as report, Waits(lambda: len(report.steps)).counted() as waits:
        case.run(pipe, **overrides)
    return waits


@over(MOCHI, LTX, HUNYUAN, WAN)
@pytest.mark.parametrize("method", ("cfg", "stg", "nag"))
def test_no_step_but_the_first_waits_for_the_device(case: Case, pipe: Any, method: str) -> None:
    assert waits_of(case, pipe, _METHODS[method]).ours(first=False) == {}


@over(*CASES)
def test_no_step_of_oseg_but_the_first_waits_for_the_device(case: Case, pipe: Any) -> None:
    waits = waits_of(case, pipe, _METHODS["oseg"])
    assert waits.ours(first=False) == {}
    assert any("equal" in one for one in waits.ours(first=True))  # the counter counts


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_scale_that_grows_over_the_frames_is_read_once(dtype: torch.dtype) -> None:
    """SVD's own, where the method leaves it to the pipeline."""
    pipe = quiet(SVD.build()).to(dtype)
    for guidance in (CFG(), OSEG(blocks=("mid",)), STG(blocks=("mid",), text=APG())):
        assert waits_of(SVD, pipe, guidance).ours(first=False) == {}


@pytest.mark.parametrize("prompt", ("a red circle", ["a red circle", "a circle"]))
def test_mochis_attention_looks_for_no_valid_tokens(prompt: Any) -> None:
    """Of diffusers' own processor: a `nonzero` for every row in every block."""
    pipe = quiet(MOCHI.build())

    def inside(guidance: Any) -> int:
        seen = waits_of(MOCHI, pipe, guidance, prompt=prompt).seen
        return sum(count for (*_, line), count in seen.items() if "attention_processor" in line)

    assert inside(_METHODS["oseg"]) == 0
    assert inside(_METHODS["cfg"]) > 0  # which changes nothing inside the denoiser


def test_another_mask_is_another_text() -> None:
    """Also one that is written into where it is, as no pipeline does."""
    torch.manual_seed(0)
    pipe = MOCHI.build()
    adapter = adapter_for(pipe)
    call = adapter.example_arguments(pipe.transformer, ClipSize(13, 48, 32), 2)
    mask_BT = call["encoder_attention_mask"]
    runner = BranchRunner(adapter, pipe.transformer, (_BLOCK,))
    with torch.no_grad(), runner.active():
        for valid in ((9, 3), (9, 256), (2, 5), (0, 1)):
            mask_BT.copy_(torch.arange(mask_BT.shape[1]) < torch.tensor(valid)[:, None])
            ours = runner.run(pipe.transformer, call, {"cond": Branch("cond")}, ("cond",))[0]["cond"]
            assert_close(ours, pipe.transformer(**call)[0], rtol=0, atol=1e-5)


def test_a_foreign_attention_processor_of_mochi_still_gets_its_mask() -> None:
    pipe = quiet(MOCHI.build())
    with guided(pipe, _METHODS["oseg"]):
        expected = MOCHI.run(pipe)
    masks = []

    class Foreign(MochiAttnProcessor2_0):
        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor,
            attention_mask: Tensor,
            image_rotary_emb: Any = None,
        ) -> Any:
            masks.append(attention_mask)
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )

    for block in pipe.transformer.transformer_blocks:
        block.attn1.processor = Foreign()
    with guided(pipe, _METHODS["oseg"]):
        assert_close(MOCHI.run(pipe), expected, **ACROSS_BATCHES)
    assert masks and all(mask.dtype == torch.bool for mask in masks)
