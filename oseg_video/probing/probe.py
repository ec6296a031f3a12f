"""Look into the blocks of a model while it samples: attention of a few queries, and each block's effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from oseg_video import console
from oseg_video.adapters import adapter_for
from oseg_video.engine.errors import GuidanceError
from oseg_video.engine.guided import guided
from oseg_video.guidance.methods import BlockGuidance, TextGuidance
from oseg_video.guidance.methods.cfg import CFG
from oseg_video.guidance.methods.oseg import OSEG
from oseg_video.guidance.methods.seg import SEG
from oseg_video.guidance.perturbations import AttentionView, ObserveAttention, QueryTransform
from oseg_video.jobs.guided import named_method
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.probing.method import Effect, ProbeDone, Probing, perturbing
from oseg_video.probing.quantities import NAMES, row_quantities, spectral_norm
from oseg_video.probing.result import AS_IT_IS, AttentionRow, EffectRow, ProbeResult
from oseg_video.types import Pipeline, SettingError

NOISE_LEVELS = (0.9, 0.7, 0.4)
SIGMAS = (1.0, 5.0, float("inf"))
QUERIES = 16


def probe(
    pipe: Pipeline,
    guidance: BlockGuidance | str,
    prompts: Sequence[str] = (),
    *,
    blocks: Sequence[int | str] = (),
    noise_levels: Sequence[float] = NOISE_LEVELS,
    sigmas: Sequence[float] = SIGMAS,
    queries: int = QUERIES,
    seed: int = 0,
    text: TextGuidance | None = None,
    mesh: Mesh = ONE_RANK,
    **arguments: Any,
) -> ProbeResult:
    """Attention quantities of every block, and what perturbing it alone does to the prediction.

    The pipeline is called once a prompt, and stopped after the last noise level. At each level every block
    costs one pass, attention another one. Memory does not grow with the attention map: `queries` rows of it
    are looked at, one at a time. In a model with sound, too, all of this is about the video.

    guidance: the method whose perturbation each block gets, or its name for that of the family's recipe; its
        blocks and scales do not matter.
    prompts: none for a pipeline that takes no text.
    blocks: those to look into, by index or name; none for all.
    noise_levels: 1 is pure noise; each is looked at in the first step at or below it.
    sigmas: widths of smoothing, in tokens, at which SEG's and OSEG's queries are looked at, too.
    queries: attention rows for each attention, noise level and prompt.
    seed: of the first noise, and of the choice of queries.
    text: the guidance of the sampling meanwhile; CFG at the pipeline's own scale where it is None.
    mesh: ranks that share the tokens; each gets the result.
    arguments: of the pipeline's call, such as `num_inference_steps`.

    Raises what `guided` does; SettingError for a value that is out of range, UnknownBlockError for an unknown
    block, GuidanceError for a mesh with a branch axis.
    """
    method = perturbing(named_method(pipe, guidance))
    check_probe(noise_levels=noise_levels, sigmas=sigmas, queries=queries)
    adapter = adapter_for(pipe)
    denoiser = adapter.denoisers(pipe)[0]
    chosen = adapter.resolve_blocks(denoiser, tuple(blocks)) if blocks else adapter.blocks(denoiser)
    transforms = query_transforms(sigmas)
    observer = _Observer(transforms, queries, seed)
    probing = Probing(
        base=text if text is not None else CFG(),
        blocks=tuple(block.index for block in chosen),
        change=method.change,
        observe=ObserveAttention(observer.see, tuple(transforms)),
        noise_levels=tuple(noise_levels),
        take_step=observer.take_step,
        take_effects=observer.take_effects,
    )
    calls = [{"prompt": prompt, **arguments} for prompt in prompts] or [arguments]
    for call in console.bar(calls, "probing", "prompt"):
        run_probing(pipe, probing, seed, call, mesh)
    return ProbeResult(
        family=adapter.family,
        method=method.name,
        change=method.change.words,
        prompts=tuple(prompts),
        seed=seed,
        paths={block.index: block.path for block in chosen},
        attention=tuple(observer.attention_rows()),
        effects=tuple(observer.effect_rows()),
        largest_share_of_bound=observer.largest_share,
        rows_checked=observer.rows,
    )


def run_probing(
    pipe: Pipeline, probing: Probing, seed: int, arguments: Mapping[str, Any], mesh: Mesh = ONE_RANK
) -> None:
    """Sample until the last noise level is probed. Raises GuidanceError for a mesh with a branch axis."""
    if mesh.branch.size > 1:
        raise GuidanceError("the probe runs its branches on one rank; give the ranks to ulysses or ring")
    with guided(pipe, probing, mesh=mesh):
        try:
            pipe(**arguments, generator=torch.Generator("cpu").manual_seed(seed))
        except ProbeDone:
            if hasattr(pipe, "maybe_free_model_hooks"):  # what the end of a call does
                pipe.maybe_free_model_hooks()


def check_probe(
    *,
    noise_levels: Sequence[float] = NOISE_LEVELS,
    sigmas: Sequence[float] = SIGMAS,
    queries: int = QUERIES,
    noise_level: float = 1.0,
    **_: Any,
) -> None:
    """Raises SettingError for arguments of `probe` and `landscape` that are refused whatever the model."""
    if not noise_levels:
        raise SettingError("noise_levels must name at least one")
    for name, levels in {"noise_levels": noise_levels, "noise_level": (noise_level,)}.items():
        for level in levels:
            if not 0 <= level <= 1:
                raise SettingError(f"{name} must be in [0, 1], got {level}")
    if queries < 1:
        raise SettingError(f"queries must be at least 1, got {queries}")
    query_transforms(sigmas)


def query_transforms(sigmas: Sequence[float]) -> dict[QueryTransform, str]:
    """The query transforms to look at, with the names that their rows have. Raises SettingError."""
    found: dict[QueryTransform, str] = {}
    for sigma in sigmas:
        if not sigma > 0:
            raise SettingError(f"sigmas must be above 0, got {sigma:g}")
        shown = f"{sigma:g}" if float(f"{sigma:g}") == sigma else repr(sigma)  # different ones look different
        found[SEG(blur_sigma=sigma, blocks=(0,)).change] = f"seg {shown}"
        found[OSEG(blur_sigma=sigma, blocks=(0,)).change] = f"oseg {shown}"
    return found


class _Observer:
    """Sums over prompts and queries what the probe sees."""

    def __init__(self, transforms: dict[QueryTransform, str], queries: int, seed: int) -> None:
        self._names: dict[QueryTransform | None, str] = {None: AS_IT_IS}
        for transform, name in transforms.items():
            self._names[transform] = name
        self._queries = queries
        self._seed = seed
        self._noise_level = 1.0
        self._sums: dict[tuple[int, float, str], Tensor] = {}
        self._counts: dict[tuple[int, float, str], int] = {}
        self._effects: dict[tuple[int, float], list[Effect]] = {}
        self.largest_share = 0.0
        self.rows = 0

    def take_step(self, noise_level: float) -> None:
        self._noise_level = noise_level

    def take_effects(self, noise_level: float, effects: Mapping[int, Effect]) -> None:
        for block, effect in effects.items():
            self._effects.setdefault((block, noise_level), []).append(effect)

    def see(self, block: int, transform: QueryTransform | None, view: AttentionView) -> None:
        key = (block, self._noise_level, self._names[transform])
        batch, _, tokens, _ = view.query_BNSD.shape
        random = torch.Generator().manual_seed(self._seed)  # the same tokens whatever the transform
        rows = torch.randint(batch, (self._queries,), generator=random)
        places = torch.randint(tokens, (self._queries,), generator=random)
        for row in rows.unique().tolist():
            place = places[rows == row].to(view.query_BNSD.device)
            key_NTD = view.key_BNTD[row]
            own_key_NQD = key_NTD[:, view.own][:, place]
            if view.valid_BT is not None:
                key_NTD = key_NTD[:, view.valid_BT[row]]
            query_NQD = view.query_BNSD[row][:, place]
            found = row_quantities(query_NQD, key_NTD, own_key_NQD, view.scale, spectral_norm(key_NTD))
            values = torch.stack([getattr(found, name) for name in NAMES]).cpu()  # quantity, head, query
            self._sums[key] = self._sums.get(key, torch.zeros(())) + values.sum(dim=2)
            self._counts[key] = self._counts.get(key, 0) + len(place)
            share = found.curvature / found.bound.clamp(min=torch.finfo(torch.float64).tiny)
            self.largest_share = max(self.largest_share, float(share.max()))
            self.rows += share.numel()

    def attention_rows(self) -> list[AttentionRow]:
        return [
            AttentionRow(*key, dict(zip(NAMES, (total / self._counts[key]).tolist(), strict=True)))
            for key, total in self._sums.items()
        ]

    def effect_rows(self) -> list[EffectRow]:
        rows = []
        for key, effects in self._effects.items():
            cosines = [one.cosine for one in effects if one.cosine is not None]
            change = mean(one.change for one in effects)
            rows.append(EffectRow(*key, change, mean(cosines) if cosines else None))
        return rows
