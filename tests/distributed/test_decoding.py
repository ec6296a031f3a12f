"""Ranks that share the VAE's decoding get the clip of one process, and each decodes a part of it only."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from oseg_video.adapters import adapter_for
from oseg_video.engine.decoding import spread_decoding
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.group import Group
from oseg_video.parallel.mesh import Mesh
from tests.integration.families import CASES, WAN, Case
from tests.tiny.wan import WAN_5B_SIZE, tiny_wan_5b

from .ranks import Ranks
from .test_parity import TOLERANCE

BY_NAME = {case.name: case for case in CASES}
BY_NAME["wan 5b"] = Case("wan 5b", tiny_wan_5b, WAN_5B_SIZE, grid=WAN.grid)


def tiles(vae: Any, **options: Any) -> None:
    """Tiles of 32 pixels, a new one every 24."""
    size = {f"tile_sample_min_{side}": 32 for side in ("height", "width")}
    vae.enable_tiling(**size | options)


def with_strides(vae: Any, **options: Any) -> None:
    tiles(vae, tile_sample_stride_height=24, tile_sample_stride_width=24, **options)


def of_images(vae: Any) -> None:
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 4


def of_latents(vae: Any) -> None:
    tiles(vae, tile_latent_min_height=2, tile_latent_min_width=2)
    vae.tile_overlap_factor = 0.5


def of_frames(vae: Any) -> None:
    vae.use_framewise_decoding = True
    step = vae.temporal_compression_ratio
    with_strides(vae, tile_sample_min_num_frames=2 * step, tile_sample_stride_num_frames=step)


def step_by_step(vae: Any) -> None:
    vae.use_framewise_decoding = True
    with_strides(vae)


def nothing(vae: Any) -> None:
    """As the VAE is by itself."""


def slices(vae: Any) -> None:
    vae.enable_slicing()


PARTS: dict[str, tuple[str, Callable[[Any], None], dict[str, Any]]] = {
    "mochi": ("mochi", with_strides, {}),
    "mochi, several calls": ("mochi", step_by_step, {}),
    "ltx": ("ltx", with_strides, {}),
    "ltx, frames": ("ltx", of_frames, {}),
    "wan": ("wan", with_strides, {}),
    "wan 5b": ("wan 5b", with_strides, {}),
    "cogvideox": ("cogvideox", tiles, {}),
    "cogvideox, several calls": ("cogvideox", tiles, {"num_frames": 17}),
    "hunyuan": ("hunyuan", with_strides, {}),
    "hunyuan, frames": ("hunyuan", of_frames, {}),
    "hunyuan15": ("hunyuan15", of_latents, {}),
    "sdxl": ("sdxl", of_images, {}),
    "sdxl, slices": ("sdxl", slices, {"prompt": ["a red circle", "a square", "no"]}),
    "sd15": ("sd15", of_images, {}),
    "svd": ("svd", nothing, {"decode_chunk_size": 1}),
    "svd, odd": ("svd", nothing, {"decode_chunk_size": 2}),
}
"""What is decoded in several parts: case, how the VAE is set, arguments of the call."""
WHOLE = {name: (name, nothing, {}) for name in ("mochi", "ltx", "wan", "cogvideox", "hunyuan", "svd")}
"""What is decoded in one part."""


@cache
def clip() -> Group:
    return Mesh.of(Degrees(ulysses=torch.distributed.get_world_size())).clip


def make(case: str, prepare: Callable[[Any], None], options: dict[str, Any], spread: bool) -> tuple[Any, int]:
    """(frames, how often the decoder ran)."""
    pipe = BY_NAME[case].build()
    prepare(pipe.vae)
    calls: list[None] = []
    pipe.vae.decoder.conv_in.register_forward_hook(lambda *_: calls.append(None))
    run = partial(BY_NAME[case].run, pipe, output_type="pt", num_inference_steps=2, **options)
    if not spread:
        return run(), len(calls)
    with spread_decoding(pipe, clip(), adapter_for(pipe).decodes_by):
        frames = run()
    require_as_before(pipe)
    return frames, len(calls)


def require_as_before(pipe: Any) -> None:
    assert "decode_latents" not in vars(pipe)
    assert "decode" not in vars(pipe.vae)
    assert "forward" not in vars(pipe.vae.decoder)


def check(ranks: Ranks, *arguments: Any) -> tuple[int, list[int]]:
    """How often the decoder runs in one process, and on each rank."""
    expected, calls = make(*arguments, spread=False)
    results = ranks.run(partial(make, spread=True), *arguments)
    for frames, _ in results:
        # The same kernels on tiles of the same shape; weights that lie elsewhere in memory round differently.
        assert_close(frames, expected, **TOLERANCE)
    return calls, [count for _, count in results]


@pytest.mark.parametrize("name", PARTS)
def test_each_rank_decodes_some_of_the_parts(two_ranks: Ranks, name: str) -> None:
    calls, (one, other) = check(two_ranks, *PARTS[name])
    assert one + other == calls
    assert 0 < other <= one < calls


@pytest.mark.parametrize("name", WHOLE)
def test_a_clip_in_one_part_is_decoded_once(two_ranks: Ranks, name: str) -> None:
    calls, counts = check(two_ranks, *WHOLE[name])
    assert counts == [calls, 0]


def test_more_ranks_than_parts(four_ranks: Ranks) -> None:
    calls, counts = check(four_ranks, *PARTS["svd"])
    assert (calls, counts) == (3, [1, 1, 1, 0])


def _failing() -> None:
    pipe = BY_NAME["wan"].build()
    with_strides(pipe.vae)

    def fail(*_: Any) -> None:
        raise ValueError("this decoder fails")

    pipe.vae.decoder.conv_in.register_forward_hook(fail)
    with (
        pytest.raises(ValueError, match="this decoder fails"),
        spread_decoding(pipe, clip(), adapter_for(pipe).decodes_by),
    ):
        pipe.vae.decode(torch.zeros(1, 4, 1, 6, 8))
    require_as_before(pipe)


def test_the_vae_is_as_before_after_a_failure(two_ranks: Ranks) -> None:
    two_ranks.run(_failing)
