"""HunyuanVideo and HunyuanVideo 1.5 written out block by block in float64, as something to compare with.

Each clip of a batch runs alone and without its padded text, so there is no mask. Attention is einsum and
softmax; a perturbation is written where it belongs, without hooks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Change = str | Callable[[Tensor, Tensor], Tensor]
"""In one block: "skip" it, mix "values" or "input" instead of attending, or new video queries from queries
and keys, [1, S, N, D]."""


class SlowHunyuan:
    """The network of a transformer, of either version, with `changes` by running index of the block."""

    def __init__(self, transformer: nn.Module, changes: Mapping[int, Change] | None = None) -> None:
        self.model: Any = copy.deepcopy(transformer).double()
        self.changes = changes or {}

    @torch.no_grad()
    def __call__(self, arguments: Mapping[str, Any]) -> Tensor:
        """The prediction for the arguments of a call of the transformer, [B, C, F, H, W]."""
        rows = [
            {name: value[i : i + 1] for name, value in arguments.items() if isinstance(value, Tensor)}
            for i in range(len(arguments["hidden_states"]))
        ]
        return torch.cat([self._predict(row) for row in rows])

    def _predict(self, row: dict[str, Tensor]) -> Tensor:
        row = {name: value.double() for name, value in row.items()}
        model, latents, timestep = self.model, row["hidden_states"], row["timestep"]
        valid = row["encoder_attention_mask"][0].bool()
        text = row["encoder_hidden_states"][:, valid]
        text = model.context_embedder(text, timestep, torch.ones(text.shape[:2]))
        first_frame = None
        if hasattr(model, "context_embedder_2"):
            time = model.time_embed(timestep)
            text = torch.cat([*self._more_text(row), text + model.cond_type_embed.weight[0]], dim=1)
        else:
            guidance = row.get("guidance")
            time, first_frame = model.time_text_embed(timestep, row["pooled_projections"], guidance)
        sizes = self._grid(latents)
        video = model.x_embedder(latents)
        # One modulation per video token: those of a given first frame count as free of noise.
        time_S = time[:, None].repeat(1, video.shape[1], 1)
        if first_frame is not None:
            time_S[:, : sizes[1] * sizes[2]] = first_frame[:, None]
        angles = [part.double()[:, ::2] for part in model.rope(latents)]
        stacks = ("transformer_blocks", "single_transformer_blocks")
        blocks = [block for stack in stacks for block in getattr(model, stack, ())]
        for index, block in enumerate(blocks):
            change = self.changes.get(index)
            if change != "skip":
                run = _single_block if hasattr(block, "proj_mlp") else _dual_block
                video, text = run(block, video, text, time_S, time[:, None], angles, change)
        scale, shift = model.norm_out.linear(functional.silu(time)).chunk(2, dim=-1)
        return self._to_latents(model.proj_out(_normalised(video, scale, shift)), sizes)

    def _more_text(self, row: dict[str, Tensor]) -> list[Tensor]:
        """Tokens of the image, if there is one, and of the letters to be drawn."""
        model, kinds = self.model, self.model.cond_type_embed.weight
        more = []
        if row["image_embeds"].any():
            more.append(model.image_embedder(row["image_embeds"]) + kinds[2])
        valid = row["encoder_attention_mask_2"][0].bool()
        return [*more, model.context_embedder_2(row["encoder_hidden_states_2"][:, valid]) + kinds[1]]

    def _grid(self, latents: Tensor) -> tuple[int, int, int]:
        frames, height, width = latents.shape[2:]
        patch, patch_t = self.model.config.patch_size, self.model.config.patch_size_t
        return frames // patch_t, height // patch, width // patch

    def _to_latents(self, video: Tensor, sizes: tuple[int, int, int]) -> Tensor:
        patch, patch_t = self.model.config.patch_size, self.model.config.patch_size_t
        patches = video.reshape(*sizes, -1, patch_t, patch, patch).permute(3, 0, 4, 1, 5, 2, 6)
        return patches.flatten(5, 6).flatten(3, 4).flatten(1, 2)[None]


def _dual_block(
    block: Any, video: Tensor, text: Tensor, time_S: Tensor, time: Tensor, angles: Any, change: Any
) -> tuple[Tensor, Tensor]:
    shift, scale, gate, shift_2, scale_2, gate_2 = _modulation(block.norm1, time_S, 6)
    text_shift, text_scale, text_gate, text_shift_2, text_scale_2, text_gate_2 = _modulation(
        block.norm1_context, time, 6
    )
    attn, heads = block.attn, block.attn.heads
    video_in = _normalised(video, scale, shift)
    text_in = _normalised(text, text_scale, text_shift)
    query, key, value = (_split(to(video_in), heads) for to in (attn.to_q, attn.to_k, attn.to_v))
    text_query, text_key, text_value = (
        _split(to(text_in), heads) for to in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    )
    query, key = _rms(query, attn.norm_q), _rms(key, attn.norm_k)
    if callable(change):
        query = change(query, key)
    mixed = _attention(
        torch.cat([_rotated(query, *angles), _rms(text_query, attn.norm_added_q)], dim=1),
        torch.cat([_rotated(key, *angles), _rms(text_key, attn.norm_added_k)], dim=1),
        torch.cat([value, text_value], dim=1),
    )
    video_mixed, text_mixed = mixed.split([video.shape[1], text.shape[1]], dim=1)
    video_mixed = {"values": value.flatten(2), "input": video_in}.get(str(change), video_mixed)
    video = video + gate * attn.to_out[0](video_mixed)
    text = text + text_gate * attn.to_add_out(text_mixed)
    video = video + gate_2 * block.ff(_normalised(video, scale_2, shift_2))
    text = text + text_gate_2 * block.ff_context(_normalised(text, text_scale_2, text_shift_2))
    return video, text


def _single_block(
    block: Any, video: Tensor, text: Tensor, time_S: Tensor, time: Tensor, angles: Any, change: Any
) -> tuple[Tensor, Tensor]:
    attn, tokens = block.attn, video.shape[1]
    both = torch.cat([video, text], dim=1)
    time_all = torch.cat([time_S, time.expand(1, text.shape[1], -1)], dim=1)
    shift, scale, gate = _modulation(block.norm, time_all, 3)
    given = _normalised(both, scale, shift)
    query, key, value = (_split(to(given), attn.heads) for to in (attn.to_q, attn.to_k, attn.to_v))
    query, key = _rms(query, attn.norm_q), _rms(key, attn.norm_k)
    if callable(change):
        query = torch.cat([change(query[:, :tokens], key[:, :tokens]), query[:, tokens:]], dim=1)
    query, key = (torch.cat([_rotated(x[:, :tokens], *angles), x[:, tokens:]], dim=1) for x in (query, key))
    mixed = _attention(query, key, value)
    instead = {"values": value.flatten(2), "input": given}.get(str(change), mixed)
    mixed = torch.cat([instead[:, :tokens], mixed[:, tokens:]], dim=1)
    wide = functional.gelu(block.proj_mlp(given), approximate="tanh")
    both = both + gate * block.proj_out(torch.cat([mixed, wide], dim=2))
    return both[:, :tokens], both[:, tokens:]


def _modulation(norm: Any, time: Tensor, parts: int) -> tuple[Tensor, ...]:
    return norm.linear(functional.silu(time)).chunk(parts, dim=-1)


def _normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift


def _rms(x: Tensor, norm: Any) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def _split(x: Tensor, heads: int) -> Tensor:
    """[1, S, C] -> [1, S, N, D]."""
    return x.unflatten(2, (heads, -1))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of neighbouring channels turned by the angles, [S, D / 2]."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[1, S, N, D] three times -> [1, S, C]."""
    logits = torch.einsum("bind,bjnd->bnij", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("bnij,bjnd->bind", logits.softmax(-1), value).flatten(2)
