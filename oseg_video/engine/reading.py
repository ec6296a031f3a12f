"""Branches that start from other latents: what the gates read in a plain pass, and the input made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from oseg_video.adapters.base import ModelAdapter, VideoTokens
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.engine.errors import GuidanceError
from oseg_video.engine.patching.observing import ObservedAttention
from oseg_video.guidance.attended import PREDICTION_TYPES, Noise, attention_mass, blur_attended
from oseg_video.guidance.methods import Guidance
from oseg_video.guidance.perturbations import AttentionView, BlurAttended, QueryTransform
from oseg_video.guidance.plan import Branch, Perturbation
from oseg_video.types import Denoiser, Pipeline, TokenGrid


def reads_attention(guidance: Guidance) -> bool:
    """Whether branches of the guidance start from what the attention of another branch showed."""
    return bool(guidance.blocks_used) and isinstance(getattr(guidance, "change", None), BlurAttended)


def noise_of(pipe: Pipeline, level: float) -> Noise:
    """The noise of a step of a pipeline. Raises `GuidanceError` for a scheduler that scales otherwise."""
    config = pipe.scheduler.config
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES or hasattr(pipe.scheduler, "precondition_inputs"):
        raise GuidanceError(
            f"the clean latents that a prediction stands for are not known with "
            f"{type(pipe.scheduler).__name__} and prediction_type {kind!r}; a scheduler of diffusion "
            f"({', '.join(PREDICTION_TYPES)}), such as DDIMScheduler, will do"
        )
    return Noise(level, kind)


class InputChanges:
    """The branches of one step that start from what the plain branch of their condition showed."""

    def __init__(
        self,
        adapter: ModelAdapter,
        denoiser: Denoiser,
        branches: Mapping[str, Branch],
        resolve: Callable[[Perturbation], Sequence[BlockAddress]],
        noise: Noise | None,
    ) -> None:
        self._adapter = adapter
        self._denoiser = denoiser
        self._noise = noise
        self._blocks = {
            branch.perturbation.source: resolve(branch.perturbation)[0]
            for branch in branches.values()
            if branch.perturbation is not None and branch.perturbation.source is not None
        }
        self._read: dict[str, tuple[str, TokenGrid, Tensor]] = {}

    def readings(self, names: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
        """What the gates do in a plain pass of these branches: run the block, and read its attention."""
        found: dict[str, Callable[..., Any]] = {}
        for place, name in enumerate(names):
            if name in self._blocks:
                address = self._blocks[name]
                tokens = self._adapter.video_tokens(self._denoiser, inputs, address)
                found[address.path] = partial(self._run_block, name, (place, len(names)), tokens)
        return found

    def changed(
        self, perturbation: Perturbation, inputs: dict[str, Any], predictions: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The inputs of a branch with other latents, and the site that was read; as they were without one."""
        source, change, call = perturbation.source, perturbation.change, self._adapter.denoiser_call
        assert source is not None and isinstance(change, BlurAttended) and self._noise is not None
        if source not in self._read:
            return inputs, ()
        site, grid, mass_BS = self._read[source]
        sample, prediction = inputs[call.sample], predictions[source]
        # Channels beyond those that are predicted are an image's.
        channels, dim = prediction.shape[call.channel_dim], call.channel_dim
        noisy, others = sample.tensor_split((channels,), dim=dim)
        blurred_BCHW = blur_attended(
            noisy.flatten(0, -4),  # frames folded into the batch
            prediction.flatten(0, -4),
            mass_BS,
            grid,
            noise=self._noise,
            blur_sigma=change.blur_sigma,
        )
        sample = torch.cat([blurred_BCHW.view(noisy.shape), others], dim=dim)
        return inputs | {call.sample: sample}, (site,)

    def _run_block(
        self,
        name: str,
        share: tuple[int, int],
        tokens: VideoTokens,
        block: nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The block as it is. share: which of how many equal parts of the rows are those of the branch."""
        site = self._adapter.site(block, self._blocks[name])

        def note(_: QueryTransform | None, view: AttentionView) -> None:
            query, key = (x.tensor_split(share[1])[share[0]] for x in (view.query_BNSD, view.key_BNTD))
            self._read[name] = site.name, tokens.grid, attention_mass(query, key[:, :, view.own])

        with ObservedAttention(site, tokens, (), note, lambda _: None).installed():
            return block(*args, **kwargs)
