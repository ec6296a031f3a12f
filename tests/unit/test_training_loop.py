"""The training loop of scripts/training: schedules, exact resumption, and packed checkpoints."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from training.loop import (
    LoopConfig,
    fit,
    learning_rate,
    load_average,
    load_kept,
    pack_checkpoint,
    unpack_checkpoint,
)

CONFIG = LoopConfig(steps=8, learning_rate=0.1, warmup_steps=2, ema_decay=0.9, log_every=4)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def train(module: nn.Module, config: LoopConfig, checkpoint) -> dict[str, torch.Tensor]:
    """Losses depend on the loop's random numbers, as a stage's do."""

    def compute_losses(step: int) -> dict[str, torch.Tensor]:
        return {"loss": (module(torch.randn(5, 3)) - step).square().mean()}

    return fit(module, compute_losses, config, checkpoint).state_dict()


def test_the_rate_warms_up_stays_and_decays():
    config = LoopConfig(steps=100, learning_rate=1.0, warmup_steps=10, decay_steps=20)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


def test_without_decay_steps_the_rate_falls_from_the_warm_up_to_the_end():
    config = LoopConfig(steps=110, learning_rate=1.0, warmup_steps=10)
    assert learning_rate(config, 60) == pytest.approx(0.5)
    assert learning_rate(config, 110) == pytest.approx(0.0)


def test_the_rate_warms_up_anew_where_a_packed_checkpoint_began():
    config = LoopConfig(steps=1000, learning_rate=1.0, warmup_steps=10, decay_steps=20)
    assert learning_rate(config, 500, warm_from=500) == pytest.approx(0.1)
    assert learning_rate(config, 520, warm_from=500) == 1.0


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = train(network(), CONFIG, tmp_path / "whole.pt")
    # The schedule is that of the whole run, the stop comes earlier: the same rates until then.
    constant = dataclasses.replace(CONFIG, decay_steps=0)
    uninterrupted = train(network(), constant, tmp_path / "uninterrupted.pt")
    train(network(), dataclasses.replace(constant, steps=5), tmp_path / "stopped.pt")
    resumed = train(network(), constant, tmp_path / "stopped.pt")
    for name, value in uninterrupted.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    assert not torch.equal(whole["0.weight"], uninterrupted["0.weight"])


def test_copies_of_the_averaged_weights_are_kept(tmp_path):
    train(network(), dataclasses.replace(CONFIG, keep_every=4), tmp_path / "run.pt")
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "run-4.safetensors",
        "run-8.safetensors",
    ]
    kept, step = load_kept(tmp_path / "run-8.safetensors")
    assert step == 8
    for name, value in load_average(tmp_path / "run.pt").items():
        torch.testing.assert_close(kept[name], value, rtol=2**-8, atol=0, msg=name)
    earlier, _ = load_kept(tmp_path / "run-4.safetensors")
    assert not torch.equal(earlier["0.weight"], kept["0.weight"])


def test_a_packed_checkpoint_is_small_and_goes_on(tmp_path):
    train(network(), CONFIG, tmp_path / "run.pt")
    pack_checkpoint(tmp_path / "run.pt", tmp_path / "packed.safetensors")
    assert (tmp_path / "packed.safetensors").stat().st_size < (tmp_path / "run.pt").stat().st_size / 2
    unpack_checkpoint(tmp_path / "packed.safetensors", tmp_path / "other" / "run.pt")
    packed, original = load_average(tmp_path / "other" / "run.pt"), load_average(tmp_path / "run.pt")
    for name, value in original.items():
        # bfloat16 keeps eight bits.
        torch.testing.assert_close(packed[name], value, rtol=2**-8, atol=0, msg=name)

    longer = dataclasses.replace(CONFIG, steps=10)
    train(network(), longer, tmp_path / "other" / "run.pt")
    state = torch.load(tmp_path / "other" / "run.pt", weights_only=True)
    assert (state["step"], state["warm_from"]) == (10, 8)
    assert {float(entry["step"]) for entry in state["optimizers"][0]["state"].values()} == {2.0}

    with pytest.raises(SystemExit, match="exists already"):
        unpack_checkpoint(tmp_path / "packed.safetensors", tmp_path / "other" / "run.pt")


def test_muon_trains_the_matrices_that_it_is_given(tmp_path):
    """After one step from nothing the update of such a matrix is orthogonal, whatever the gradient's size."""
    config = dataclasses.replace(
        CONFIG, muon=("0",), warmup_steps=1, weight_decay=0.0, steps=1, ema_decay=0.0
    )
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    after = train(module, config, tmp_path / "a.pt")
    moved = (after["0.weight"] - before["0.weight"]).double()
    singular = torch.linalg.svdvals(moved)
    assert float(singular.max() / singular.min()) < 3  # Newton and Schulz's five steps come that close
    adam = (after["2.weight"] - before["2.weight"]).abs()
    assert torch.allclose(adam, torch.full_like(adam, config.learning_rate), rtol=1e-3)
