"""What a guidance needs of a model and of the way that it is run, asked before any step."""

from __future__ import annotations

from typing import cast

from oseg_video.adapters.base import ModelAdapter, all_adapters
from oseg_video.engine.errors import GuidanceError
from oseg_video.engine.reading import reads_attention
from oseg_video.guidance.flat import flat_name
from oseg_video.guidance.methods import BlockGuidance, Guidance
from oseg_video.guidance.perturbations import ExtrapolateAttention
from oseg_video.guidance.reuse import Reuse
from oseg_video.settings import settings_of
from oseg_video.settings.schedule import values_of
from oseg_video.types import Denoiser, SettingError


def check_sound(adapter: ModelAdapter, guidance: Guidance) -> None:
    """Refuse, with a SettingError, what only means something to models that make sound."""
    for name, declared in settings_of(guidance).items():
        if declared.sound and adapter.audio is None and getattr(guidance, name) != declared.default:
            makers = ", ".join(one.family for one in all_adapters() if one.audio is not None)
            raise SettingError(
                f"{flat_name(guidance.name, name, declared)} has no effect with {adapter.family}, "
                f"which makes no sound; it is for {makers}"
            )


def check_reuse(guidance: Guidance, reuse: Reuse) -> None:
    """Refuse, with a `SettingError`, estimates for a guidance that runs no plain conditional branch."""
    if reuse.active and _reads_negative(guidance):
        raise SettingError(
            f"refresh and cache follow the plain conditional prediction, which {guidance.name} never runs; "
            f"leave them out"
        )
    followed = reuse.cache > 0 or dict(reuse.refresh).get("perturbed", 1) != 1
    if followed and isinstance(guidance, BlockGuidance) and guidance.draws_blocks:
        raise SettingError(
            f"refresh perturbed and cache follow a branch from step to step; {guidance.name} perturbs other "
            f"blocks in each, so leave them out"
        )


def _reads_negative(guidance: Guidance) -> bool:
    change = getattr(guidance, "change", None)
    return isinstance(change, ExtrapolateAttention) and not change.identity


def check_blocks(adapter: ModelAdapter, denoiser: Denoiser, guidance: Guidance) -> None:
    """Refuse blocks that a model lacks or that do not serve the guidance.

    Raises `UnknownBlockError`; `GuidanceError` where no block of the family serves, `SettingError` for blocks
    that do not.
    """
    maps = adapter.attention_maps(denoiser)
    if reads_attention(guidance) and not maps:
        raise GuidanceError(
            f"{guidance.name} takes its mask from self-attention in the middle of a UNet; {adapter.family} "
            f"is a transformer of one resolution and has no middle; use pag, seg or oseg"
        )
    if _reads_negative(guidance) and not adapter.text_attention:
        why = "takes none" if adapter.text == "none" else "names no attention to it (`text_attention`)"
        raise GuidanceError(
            f"{guidance.name} changes how the video attends to a text, and {adapter.family} {why}"
        )
    adapter.resolve_blocks(denoiser, guidance.blocks_used)
    if isinstance(guidance, BlockGuidance) and guidance.draws_blocks:
        for selector in (one for blocks in values_of(guidance.blocks) for one in blocks):
            found = adapter.resolve_blocks(denoiser, (selector,))
            if len(found) != 1:
                numbers = ",".join(str(one.index) for one in found)
                raise SettingError(
                    f"{guidance.name} draws from single blocks, and {selector} names {len(found)}: {numbers}"
                )
    if not reads_attention(guidance):
        return
    for blocks in values_of(cast(BlockGuidance, guidance).blocks):
        found = adapter.resolve_blocks(denoiser, blocks)
        if blocks and (len(found) != 1 or found[0] not in maps):
            named, paths = ",".join(map(str, blocks)), ", ".join(one.path for one in found[:3])
            raise SettingError(
                f"blocks of {guidance.name} must name one block, whose self-attention looks over an image, "
                f"such as {maps[0].group}:{maps[0].position}; {named} names {paths}"
            )
