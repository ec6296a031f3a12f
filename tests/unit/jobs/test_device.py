"""The device is said, with the reason where it is the CPU; a large model does not run there unasked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oseg_video.adapters import adapter_for_class
from oseg_video.jobs.loading import device as device_module
from oseg_video.jobs.loading.device import describe_device, falls_back, refuse_large
from oseg_video.jobs.loading.errors import LoadError
from oseg_video.jobs.loading.meta import full_size_denoiser

OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update it"


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch with CUDA, whose driver it does not like; its warning has been given already."""

    def init() -> None:
        raise RuntimeError(f"{OLD_DRIVER}.\nmore lines")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)


@pytest.mark.usefixtures("old_driver")
def test_the_cpu_that_nobody_asked_for_is_said_with_the_reason() -> None:
    assert describe_device("auto") == f"cpu ({OLD_DRIVER})"


def test_a_torch_without_cuda_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert describe_device("auto") == "cpu (this torch is built without CUDA)"


@pytest.mark.parametrize("name", ("cpu", "cuda:1"))
def test_a_device_that_was_asked_for_needs_no_reason(name: str) -> None:
    assert describe_device(name) == name
    assert not falls_back(name)


def test_the_first_gpu_is_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert describe_device("auto") == "cuda"
    assert not falls_back("auto")


@pytest.mark.usefixtures("old_driver")
def test_a_large_denoiser_is_refused_in_one_line() -> None:
    denoiser = full_size_denoiser(adapter_for_class("MochiPipeline"))
    with pytest.raises(LoadError) as caught:
        refuse_large("mochi", denoiser)
    message = str(caught.value)
    assert message.startswith("mochi has 10.0 billion parameters and would run on the CPU")
    assert OLD_DRIVER in message and "--device cpu" in message and "\n" not in message


def test_a_small_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    small = nn.Linear(3, 4)
    refuse_large("small", small)
    monkeypatch.setattr(device_module, "_LARGE", 15)
    with pytest.raises(LoadError):
        refuse_large("small", small)
