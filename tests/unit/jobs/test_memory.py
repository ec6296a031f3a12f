"""Does a job fit: what is refused, what is warned of, and what is said to fit instead."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oseg_video.jobs.loading import memory, pipeline
from oseg_video.jobs.loading.memory import Load, NotEnoughMemoryError, Weights, check_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# Values of each tensor: in bfloat16 2,000 + 1,000 bytes, and 600.
TENSORS = {"transformer": [1000, 500], "text_encoder": [300]}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Load]:
    def of(dtype: torch.dtype = torch.bfloat16, **options: Any) -> Load:
        components = {}
        for name, counts in TENSORS.items():
            header = json.dumps({f"w{i}": {"shape": [count]} for i, count in enumerate(counts)}).encode()
            file = tmp_path / f"{name}.safetensors"
            file.write_bytes(struct.pack("<Q", len(header)) + header)
            components[name] = Weights([file], dtype)
        return Load(components, dtype, denoisers=("transformer",), **options)

    return of


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what is free, in bytes."""

    def of(host: int = 10**9, gpu: int = 10**9) -> None:
        monkeypatch.setattr(memory, "available_memory", lambda device: gpu if device == GPU else host)

    return of


def ranks(count: int, rank: int = 0, elsewhere: int = 0) -> Any:
    """A mesh of as many ranks with the same needs, some of them on another machine."""

    def gather(value: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        here = [(value[0], one, *value[2:]) for one in range(count)]
        return here + [("another machine", count + one, *value[2:]) for one in range(elsewhere)]

    return SimpleNamespace(rank=rank, gather_objects=gather)


def test_bytes_of_a_load(load: Callable[..., Load]) -> None:
    whole = load(activations=50)
    assert whole.weights == 3600 and whole.pinned == 2048 + 1024 + 1024
    peaks = {mode: whole.device_peak(mode) for mode in ("none", "model", "group", "sequential")}
    assert peaks == {"none": 3650, "model": 3050, "group": 4050, "sequential": 2050}
    assert load(owners=2).device_weights("none") == 1500 + 600


@pytest.mark.parametrize(
    ("device", "offload", "gpu", "host", "message"),
    [
        (GPU, "none", 3599, 10**9, "of GPU memory for its weights in bfloat16, .*; try --offload model$"),
        (GPU, "none", 2999, 10**9, "GPU memory.*; try --offload sequential$"),
        (GPU, "model", 2999, 10**9, "GPU memory.*; try --offload sequential$"),
        (GPU, "model", 10**9, 3599, "of memory for its weights.*; no --dtype or --offload makes it fit"),
        (
            CPU,
            "none",
            0,
            3599,
            "of memory for its weights.*; no --dtype or --offload makes it fit; try a small",
        ),
    ],
)
def test_weights_that_cannot_fit_are_refused(
    load: Callable[..., Load],
    free: Callable[..., None],
    device: torch.device,
    offload: str,
    gpu: int,
    host: int,
    message: str,
) -> None:
    free(host, gpu)
    with pytest.raises(NotEnoughMemoryError, match=message):
        check_memory(load(), device, offload)
    free(3600, 3600)
    check_memory(load(), device, offload)


def test_a_narrower_dtype_is_named_where_it_fits(
    load: Callable[..., Load], free: Callable[..., None]
) -> None:
    free(3600)
    with pytest.raises(NotEnoughMemoryError, match=r"in float32, .*; try --dtype bfloat16$"):
        check_memory(load(torch.float32), CPU, "none", narrow=load())
    with pytest.raises(NotEnoughMemoryError, match="no --dtype or --offload makes it fit"):
        check_memory(load(torch.float32), CPU, "none", narrow=load(activations=1))


@pytest.mark.parametrize(("offload", "peak"), [("none", 4100), ("model", 3500), ("group", 4500)])
def test_activations_that_do_not_fit_are_a_warning(
    load: Callable[..., Load],
    free: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    offload: str,
    peak: int,
) -> None:
    free(gpu=peak)
    check_memory(load(activations=500), GPU, offload)
    assert caplog.records == []
    free(gpu=peak - 1)
    check_memory(load(activations=500), GPU, offload)
    (record,) = caplog.records
    assert "of activations a step needs about" in record.message and "of GPU memory" in record.message
    assert "; try --offload" in record.message


@pytest.mark.parametrize(
    ("offload", "peak"), [("none", 3700 + 900), ("model", 100 + 900), ("group", 4000 + 900)]
)
def test_decoding_that_does_not_fit_is_a_warning(
    load: Callable[..., Load],
    free: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    offload: str,
    peak: int,
) -> None:
    monkeypatch.setitem(TENSORS, "vae", [50])
    whole = load(decoding=900)
    assert whole.decoding_peak(offload) == peak
    free(gpu=max(peak, whole.device_peak(offload)))
    check_memory(whole, GPU, offload)
    assert caplog.records == []
    more = load(decoding=9000)
    free(gpu=5000)
    check_memory(more, GPU, offload, tiles=True)
    check_memory(more, GPU, offload)
    tiled, whole_only = (record.message for record in caplog.records if "decoding" in record.message)
    assert re.fullmatch(r"decoding needs about .* of GPU memory, .* is free; try --vae-tiling", tiled)
    assert whole_only.endswith("; try fewer frames or a smaller size")


def test_all_ranks_of_a_machine_count(
    load: Callable[..., Load], free: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    free(host=3 * 3600)
    check_memory(load(), GPU, "none", mesh=ranks(3, elsewhere=5))
    assert caplog.records == []
    check_memory(load(), GPU, "none", mesh=ranks(4, rank=1))
    assert caplog.records == []  # the first one of the machine speaks
    check_memory(load(), GPU, "none", mesh=ranks(4))
    (record,) = caplog.records
    assert record.message.startswith("the 4 ranks of this machine need about")
    caplog.clear()
    check_memory(load(activations=1), CPU, "none", mesh=ranks(3))
    assert "activations steps of 3 ranks need about" in caplog.text


def test_group_offload_pins_what_fits_in_powers_of_two(
    load: Callable[..., Load], free: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    free(host=4096)
    assert check_memory(load(), GPU, "group")
    assert not check_memory(load(), GPU, "model")
    assert caplog.records == []
    free(host=4095)
    assert not check_memory(load(), GPU, "group")
    assert "weights are pinned one by one, which is slower" in caplog.text


@pytest.mark.parametrize("pin", [True, False])
def test_the_pipeline_is_told_to_pin(pin: bool) -> None:
    told: dict[str, Any] = {}
    pipe = SimpleNamespace(enable_group_offload=lambda **options: told.update(options))
    pipeline._place(pipe, GPU, "group", pin=pin)
    assert told["low_cpu_mem_usage"] is not pin and told["use_stream"]
