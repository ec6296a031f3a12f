"""What a job will do, for the reader: branches, blocks, rule, passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from oseg_video.adapters import ModelAdapter
from oseg_video.adapters.denoiser import JointText
from oseg_video.config import GenerateJob
from oseg_video.config.keys import job_to_nested
from oseg_video.guidance.plan import Branch
from oseg_video.guidance.reuse import Reuse
from oseg_video.jobs.activations import decoding_activations, job_activations
from oseg_video.jobs.counted import CountedJob, StepKind, count_job
from oseg_video.jobs.loading.device import describe_device, falls_back
from oseg_video.jobs.loading.memory import gib
from oseg_video.jobs.loading.pipeline import resolve_dtype
from oseg_video.jobs.ranks import AUTO, plan_degrees
from oseg_video.parallel.degrees import Degrees
from oseg_video.types import Denoiser


def explain(job: GenerateJob, ranks: int = 1, parallel: str = AUTO) -> str:
    """Text that says what a job will do; reads the model's configuration only.

    ranks, parallel: as of `--gpus` and `--parallel`. Raises as `count_job` and `plan_degrees`.
    """
    counted = count_job(job)
    adapter, denoiser = counted.adapter, counted.denoiser
    note = (
        "; hub not reached, the family's full size; what only its files say is not checked"
        if counted.full_size
        else ""
    )
    lines = [
        f"model      {job.model} ({adapter.family}, {len(adapter.blocks(denoiser))} blocks{note})",
        f"clip       {job.frames} frames of {job.height} x {job.width} pixels, {job.steps} steps",
        *_settings(job, adapter),
        f"device     {describe_device(job.device)}",
        f"guidance   {job.guidance.name}",
    ]
    degrees = Degrees()
    if ranks > 1 or parallel != AUTO:
        clips = max(1, len(job.prompts)) * len(job.seeds)
        degrees, why = plan_degrees(
            ranks, parallel, job, counted.adapter, counted.denoiser, clips, counted.read
        )
        lines.append(f"ranks      {ranks}, {degrees}" + (f": {why}" if why else ""))
    lines.append(f"memory     {_memory(job, counted, degrees)}")
    if job.reuse.active:
        lines.append(f"reuse      {'; '.join(_reuse(job.reuse))}")
    if counted.idle:
        lines.append(f"warning    {counted.idle}")
    for _, alike in itertools.groupby(counted.kinds, _but_for_blocks):
        first, *others = alike
        lines += _describe(first, counted)
        if len(others) == 1:
            lines += _describe(others[0], counted)
        elif others:
            lines += _other_blocks(others)
    lines += _totals(counted)
    return "\n".join(lines)


def _memory(job: GenerateJob, counted: CountedJob, degrees: Degrees) -> str:
    """What the denoiser takes on the first rank."""
    on_gpu = job.device.startswith("cuda") or (job.device == AUTO and not falls_back(job.device))
    dtype = resolve_dtype(job.dtype, torch.device("cuda" if on_gpu else "cpu"))
    activations = job_activations(job, counted.adapter, counted.denoiser, counted.read, dtype, degrees)
    weights = sum(one.nbytes for one in counted.denoiser.parameters())
    name = str(dtype).removeprefix("torch.")
    step = f"{gib(activations)} of activations in a step" if activations else "activations not counted"
    decoding = decoding_activations(job, counted.adapter, counted.read, dtype)
    whole = f", {gib(decoding)} while the clip is decoded" if decoding else ""
    return f"{gib(weights)} of weights of {_one_denoiser(counted)} in {name}, {step}{whole}"


def _one_denoiser(counted: CountedJob) -> str:
    return "one denoiser" if len(counted.adapter.denoiser_attributes) > 1 else "the denoiser"


def _settings(job: GenerateJob, adapter: ModelAdapter) -> Iterator[str]:
    """What the pipeline is called with besides, of which a recipe may say more than the user."""
    if job.negative_prompt is not None:
        yield f"negative   {job.negative_prompt!r}"
    if own := job_to_nested(job)["own"]:
        yield f"settings   {', '.join(f'{name} {value}' for name, value in own.items())}"
    if adapter.shown_scale and adapter.scales_set(job.own):
        yield f"scale      {adapter.shown_scale}"


def _describe(kind: StepKind, counted: CountedJob) -> Iterator[str]:
    yield ""
    yield kind.when
    yield f"  rule      {kind.plan.formula}"
    for name, branch in kind.plan.branches.items():
        shown = _branch(branch, counted.adapter, counted.denoiser)
        yield f"  branch    {name}: {shown}{_share(name, kind)}"
    for names, share in kind.passes:
        replayed = f" (the first {1 - share:.0%} of the denoiser replayed)" if share < 1 else ""
        yield f"  pass      {', '.join(names)}{replayed}"
    fewest, most = (f"{count:.2f}" for count in kind.pass_count)
    passes = f"{most if fewest == most else f'{fewest} to {most}'} passes a step"
    yield f"  cost      {passes}{_second_texts(kind, counted)}"


def _but_for_blocks(kind: StepKind) -> Any:
    """What steps have in common in which a method only chooses other blocks."""
    if kind.steps is None:  # another noise level
        return kind.when
    branches = kind.plan.branches.items()
    changes = [(name, one.condition, one.perturbation and one.perturbation.change) for name, one in branches]
    return kind.plan.formula, str(changes)


def _other_blocks(kinds: Sequence[StepKind]) -> Iterator[str]:
    """Of methods that draw blocks for every step, whose steps one by one would fill pages."""
    fewest, most = (pick(kind.pass_count[end] for kind in kinds) for end, pick in ((0, min), (1, max)))
    yield ""
    yield f"{kinds[0].when.rpartition(' to ')[0]} to {kinds[-1].when.rpartition(' to ')[2]}"
    yield "  the same, with other blocks in each"
    yield f"  cost      {fewest:.2f} to {most:.2f} passes a step"


def _second_texts(kind: StepKind, counted: CountedJob) -> str:
    """What is computed besides the passes."""
    if not any(branch.reads_negative for branch in kind.plan.branches.values()):
        return ""
    if isinstance(counted.adapter.text_attention, JointText):
        return ", as the negative text takes a second row through all blocks"
    blocks = len(counted.adapter.blocks(counted.denoiser))
    return f", and cross-attention to a second text in {blocks} blocks"


def _share(name: str, kind: StepKind) -> str:
    """How often a branch is computed, where that is not in every step."""
    if kind.computed is None or kind.computed[name] == kind.steps:
        return ""
    return f"; computed in {kind.computed[name]} of {kind.steps} steps, else estimated"


def _reuse(reuse: Reuse) -> Iterator[str]:
    for kind, every in reuse.refresh:
        when = f"up to {every:.0%} of the steps" if every < 1 else f"every {every} steps"
        yield f"{kind} computed {when}"
    if reuse.cache:
        yield f"blocks behind the first skipped where it moved by less than {reuse.cache:g}"


def _branch(branch: Branch, adapter: ModelAdapter, denoiser: Denoiser) -> str:
    condition = {"cond": "conditional", "uncond": "unconditional"}[branch.condition]
    if branch.perturbation is None:
        return condition
    blocks = adapter.resolve_blocks(denoiser, branch.perturbation.blocks)
    if branch.reads_negative:
        return f"{condition}, {branch.perturbation.change.words} in all {len(blocks)} blocks"
    names = ", ".join(f"{block.index} ({block.path})" for block in blocks[:4])
    more = f" and {len(blocks) - 4} more" if len(blocks) > 4 else ""
    return f"{condition}, {branch.perturbation.change.words} in block {names}{more}"


def _totals(counted: CountedJob) -> Iterator[str]:
    plain = "CFG" if counted.plain_passes == 2 else "no text guidance"
    reference = f"{plain}: {counted.steps * counted.plain_passes}"
    fewest, most = counted.passes
    yield ""
    if fewest == most:
        yield f"total      {most:.1f} passes ({reference})"
    else:
        yield (
            f"total      {fewest:.1f} to {most:.1f} passes ({reference}), "
            "depending on what only the sampling tells"
        )
