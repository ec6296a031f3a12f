"""Bytes of activations that live at once in a step, or while a clip is decoded.

Counted on tensors without values (meta), of any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from oseg_video.adapters import ClipSize, ModelAdapter
from oseg_video.adapters.blocks import BlockAddress
from oseg_video.adapters.settings import ReadJson
from oseg_video.config import GenerateJob
from oseg_video.console import logger, one_line
from oseg_video.engine.assignment import assign_branches
from oseg_video.engine.branches import BranchRunner
from oseg_video.engine.patching import replaced
from oseg_video.engine.sharding import handed_on
from oseg_video.guidance.attended import Noise
from oseg_video.guidance.plan import Branch
from oseg_video.guidance.reuse import EXACT, Reuse
from oseg_video.jobs.checks import clip_settings
from oseg_video.jobs.loading.meta import empty_vae
from oseg_video.jobs.on_meta import FusedAttention, runnable_on_meta
from oseg_video.jobs.step_kinds import pipeline_scales, runs_uncond, step_kinds
from oseg_video.parallel.degrees import Degrees
from oseg_video.parallel.mesh import Mesh
from oseg_video.types import Denoiser, ShapeError

_ONE_RANK = Degrees()
_NOISE = Noise(0.5, "epsilon")  # any will do to count


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are made inside, for as long as something holds them.

    Tensors that were there before (weights, inputs) do not count, nor what a kernel needs for itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        """The most bytes that lived at once."""
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):
            storage = x.untyped_storage()
            key = storage._cdata
            if key not in self._live and all(key != one.untyped_storage()._cdata for one in _tensors(args)):
                self._live[key] = StorageWeakRef(storage), storage.nbytes()
                self._total += storage.nbytes()
                if self._total > self.peak:
                    self._forget_freed()
                    self.peak = max(self.peak, self._total)
        return out

    def _forget_freed(self) -> None:
        self._live = {key: one for key, one in self._live.items() if not one[0].expired()}
        self._total = sum(size for _, size in self._live.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def job_activations(
    job: GenerateJob,
    adapter: ModelAdapter,
    denoiser: Denoiser,
    read: ReadJson,
    dtype: torch.dtype,
    degrees: Degrees = _ONE_RANK,
    branch_rank: int = 0,
) -> int:
    """`activation_bytes` of a job's clip, in the step that takes most; 0 where they cannot be counted.

    denoiser: on the meta device; its weights are in `dtype` from then on. read: what reads the model's files.
    Raises ShapeError for a method that does not fit the model's sizes.
    """
    scales = pipeline_scales(adapter, job, read)
    steps = [plan.branches for _, _, plan in step_kinds(job.guidance, job.steps, scales)]
    try:
        return activation_bytes(
            adapter,
            in_dtype(denoiser, dtype),
            _clip(job, adapter, read),
            list({repr(branches): branches for branches in steps}.values()),
            uncond=runs_uncond(scales),
            reuse=job.reuse,
            degrees=degrees,
            branch_rank=branch_rank,
        )
    except ShapeError:  # a setting that the model's sizes do not allow
        raise
    except Exception as error:  # a model that asks for values may run all the same
        logger.info(f"activations are not counted: {one_line(str(error))}")
        return 0


def decoding_activations(job: GenerateJob, adapter: ModelAdapter, read: ReadJson, dtype: torch.dtype) -> int:
    """Bytes that live at once while the VAE decodes a job's clip, beside its weights; 0 where not counted.

    read: what reads the model's files. dtype: what the job asks for. Decoding in tiles is not counted: that
    takes 20 s and more for Wan and HunyuanVideo, and for a memory of 1 to 4 GiB in any family.
    """
    if job.vae_tiling:
        return 0
    try:
        if not read("vae/config.json"):  # the hub was not reached
            return 0
        vae = in_dtype(empty_vae(read), adapter.component_dtype("vae", dtype))
        arguments = adapter.decoding_example(vae, _clip(job, adapter, read), clip_settings(job))
        with runnable_on_meta(), FusedAttention(), LiveBytes() as live:
            vae.decode(**arguments)
    except Exception as error:  # as above
        logger.info(f"activations of decoding are not counted: {one_line(str(error))}")
        return 0
    return int(live.peak)


def _clip(job: GenerateJob, adapter: ModelAdapter, read: ReadJson) -> ClipSize:
    return ClipSize(job.frames, job.height, job.width, adapter.pixels_per_latent(read))


def activation_bytes(
    adapter: ModelAdapter,
    denoiser: Denoiser,
    clip: ClipSize,
    steps: Sequence[Mapping[str, Branch]],
    *,
    uncond: bool,
    reuse: Reuse = EXACT,
    degrees: Degrees = _ONE_RANK,
    branch_rank: int = 0,
) -> int:
    """Bytes that live at once in the one of these steps that takes most, beside weights and latents.

    denoiser: on the meta device. steps: the branches of each. uncond: whether the pipeline has rows for it.
    degrees: the ranks that make the clip; the one that is counted is the first along the sequence, which has
    the most tokens and heads, and `branch_rank` along the branch axis. Text is counted at its full padded
    length, attention as fused. What a step cache keeps, and what kernels need for themselves, is left out.
    """
    steps = [_at_firsts(adapter, denoiser, branches) for branches in steps]
    perturbed = [one.perturbation for branches in steps for one in branches.values() if one.perturbation]
    selectors = tuple(dict.fromkeys(block for one in perturbed for block in one.blocks))
    sequence = Mesh.on_paper(degrees).sequence
    runner = BranchRunner(adapter, denoiser, selectors, reuse=reuse, sequence=sequence)
    calls = adapter.sampling.calls(uncond=uncond)
    conditions = tuple(condition for rows in calls for condition in rows)
    arguments = adapter.example_arguments(denoiser, clip, len(calls[0]))
    negative = adapter.example_arguments(denoiser, clip, 1)
    blocks = adapter.blocks(denoiser)
    running = [*_ends(blocks), *adapter.resolve_blocks(denoiser, selectors)]
    resting = [block for block in blocks if block not in running]
    peak = 0
    with runnable_on_meta(), FusedAttention(), _handing_on(adapter, denoiser, resting), runner.active():
        for branches in steps:
            ranks = assign_branches(runner, branches, conditions, degrees.branch)
            for rows in calls:
                own = {
                    name: branch
                    for name, branch in branches.items()
                    if branch.condition in rows and ranks[name] == branch_rank
                }
                if own:
                    with LiveBytes() as live:
                        runner.run(denoiser, arguments, own, rows, noise=_NOISE, negative=negative)
                    peak = max(peak, live.peak)
    return peak


def in_dtype(denoiser: Denoiser, dtype: torch.dtype) -> Denoiser:
    """A denoiser or VAE on the meta device as its weights are loaded: some stay in float32."""
    kept = {
        *(getattr(denoiser, "_keep_in_fp32_modules_strict", None) or ()),
        *(getattr(denoiser, "_keep_in_fp32_modules", None) or ()),
    }
    for name, weight in denoiser.named_parameters():
        weight.data = weight.data.to(dtype if kept.isdisjoint(name.split(".")) else torch.float32)
    return denoiser


def _ends(blocks: Sequence[BlockAddress]) -> list[BlockAddress]:
    """The first and the last two of each stage and kind; the very last may do without its text.

    All others take the same, so what lives at once is the same with these alone: a count of 60 blocks takes
    seconds.
    """
    groups: dict[str, list[BlockAddress]] = {}
    for block in blocks:
        groups.setdefault(block.group, []).append(block)
    return [block for group in groups.values() for block in (group[0], *group[-2:])]


def _firsts(blocks: Sequence[BlockAddress]) -> list[BlockAddress]:
    return list({one.group: one for one in reversed(blocks)}.values())


def _at_firsts(
    adapter: ModelAdapter, denoiser: Denoiser, branches: Mapping[str, Branch]
) -> dict[str, Branch]:
    """The branches, perturbed in the first of their blocks of each stage and kind."""

    def reduced(branch: Branch) -> Branch:
        if branch.perturbation is None:
            return branch
        blocks = _firsts(adapter.resolve_blocks(denoiser, branch.perturbation.blocks))
        perturbation = replace(branch.perturbation, blocks=tuple(one.index for one in blocks))
        return replace(branch, perturbation=perturbation)

    return {name: reduced(branch) for name, branch in branches.items()}


@contextmanager
def _handing_on(adapter: ModelAdapter, denoiser: Denoiser, blocks: Sequence[BlockAddress]) -> Iterator[None]:
    """These blocks hand on what they get."""

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        return handed_on(adapter.block_outputs, args, kwargs)

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced(denoiser.get_submodule(block.path), "forward", hand_on))
        yield
