"""The parts of the study. Each takes what the ones before it found, and returns plain results.

Values and differences are `Interval95`; a dictionary of them has the names of `Statistics.values`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from scipy.stats import spearmanr

from oseg_video.config.keys import known_keys
from oseg_video.config.recipes import shipped_recipe
from oseg_video.guidance.flat import guidance_from_flat
from oseg_video.guidance.methods import BlockGuidance
from oseg_video.guidance.reuse import Reuse
from oseg_video.probing.probe import probe
from study.bench import CLIPS_PER_PROMPT, Bench, Rows, Setting
from study.search import Found, arms_of, search_all
from study.statistics import Statistics, quartile_clips

SEARCH_SEED, TEST_SEED = 500, 900
NONE: Mapping[str, Any] = {"guidance": "cfg", "guidance_scale": 1}
GROUPS = ("plain", "alone", "with text")
"""Each needs those before it."""
PROBE_PROMPTS = 8
"""Or as many as the test has."""


@dataclass(frozen=True)
class Study:
    """What all parts share."""

    bench: Bench
    statistics: Statistics
    """Of the test."""
    recipe: Mapping[str, Any]
    """methods.yaml."""
    steps: int
    budget: int
    """Clips of a method in a search."""
    blocks: int = 5

    @property
    def search_setting(self) -> Setting:
        """For the arms of a search."""
        return Setting(guidance=NONE, steps=self.steps, seed=SEARCH_SEED)

    def rows(self, guidance: Mapping[str, Any], label: str, **changes: Any) -> Rows:
        """Of the test."""
        setting = Setting(guidance=guidance, steps=self.steps, seed=TEST_SEED)
        return self.bench.rows(replace(setting, **changes), self.statistics.clips, label)


def search_methods(study: Study) -> dict[str, dict[str, Found]]:
    """By group of the recipe, the best arm of every method.

    Text guidance is searched first: the others use its scale. Where the axes with text say nothing of sigma,
    it is what the method has alone.
    """
    plain = {label: axes for label, axes in study.recipe["plain"].items() if label != "none"}
    found = {"plain": _searched(study, plain, NONE)}
    if "alone" in study.recipe:
        found["alone"] = _searched(study, study.recipe["alone"], NONE, guidance_scale=1)
    if "with text" not in study.recipe:
        return found
    cfg = found["plain"]["cfg"].guidance
    best = cfg["guidance_scale"]
    with_text = {
        label: {**_sigma(found["alone"].get(label, found["alone"][axes["guidance"]])), **axes}
        for label, axes in study.recipe["with text"].items()
    }
    scales = [1 + share * (best - 1) for share in (0.25, 0.5, 1)]
    found["with text"] = _searched(study, with_text, cfg, guidance_scale=scales)
    return found


def _sigma(found: Found) -> dict[str, Any]:
    return {name: value for name, value in found.guidance.items() if name == "blur_sigma"}


def _searched(study: Study, methods: Mapping[str, Any], baseline: Mapping[str, Any], **more: Any) -> dict:
    arms = {
        label: arms_of(label, {**axes, **more}, study.recipe["arms"], study.blocks)
        for label, axes in methods.items()
    }
    setting, statistics = study.search_setting, study.statistics
    return search_all(study.bench, arms, baseline, setting, study.budget, statistics)


def compared_in_regimes(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was found of the block methods without text, and of OSEG with its best reference on top of text.

    Text guidance is CFG at the scale that OSEG has on top of it, so that the two differ in nothing else.
    """
    alone = {label: found["alone"][label] for label in ("pag", "seg", "stg", "oseg", "oseg frame")}
    oseg = found["with text"]["oseg frame"]
    cfg = {"guidance": "cfg", "guidance_scale": oseg["guidance"]["guidance_scale"]}
    return {"plain": {"cfg": {"guidance": cfg}}, "alone": alone, "with text": {"oseg frame": oseg}}


def winners(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Group, label and settings of each arm of the test, baselines first."""
    yield "plain", "none", NONE
    for group, methods in found.items():
        for label, one in methods.items():
            yield group, label, one["guidance"]


def test_winners(
    study: Study, found: Mapping[str, Mapping[str, Any]], **changes: Any
) -> list[dict[str, Any]]:
    """Values of each winner, and paired differences to its baseline and to OSEG, with text where it has text.

    The baseline is no guidance, of methods with text guidance CFG at its best scale.
    changes: of the setting, such as other steps.
    """
    arms = list(winners(found))
    rows = {(group, label): study.rows(one, f"{group}: {label}", **changes) for group, label, one in arms}
    table = []
    for group, label, guidance in arms:
        own = rows[group, label]
        base = ("plain", "cfg") if group == "with text" else ("plain", "none")
        row = {"group": group, "label": label, "guidance": dict(guidance)}
        row |= {"values": study.statistics.values(own)}
        if (group, label) != base:
            row["minus"] = base[1]
            row["differences"] = study.statistics.differences(own, rows[base])
            row["quartile clips"] = quartile_clips(own, rows[base])
        oseg = rows.get(("with text" if group == "with text" else "alone", "oseg"))
        if oseg is not None and label not in ("none", "oseg"):
            row["oseg minus it"] = study.statistics.differences(oseg, own)
        table.append(row)
    return table


def what_does_the_work(study: Study, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """OSEG's parts and a control, each at its own best scale, at OSEG's block and sigma, without text."""
    oseg = found["alone"]["oseg"]["guidance"]
    same = {"blocks": [oseg["blocks"]], "guidance_scale": 1}
    scales, sigma = [0.25, 0.5, 1, 2, 4, 8, 16, 32], oseg["blur_sigma"]
    methods = {
        "orthogonal part smoothed, rest dropped (OSEG)": {
            **{"guidance": "oseg", "oseg_scale": scales, "blur_sigma": sigma}
        },
        "orthogonal part smoothed, rest kept (OSEG, kappa 1)": {
            **{"guidance": "oseg", "oseg_scale": scales, "blur_sigma": sigma, "keep_parallel": 1}
        },
        "all smoothed (SEG)": {"guidance": "seg", "seg_scale": scales, "blur_sigma": sigma},
        "nothing smoothed, rest dropped (OSEG, sigma 0)": {
            **{"guidance": "oseg", "oseg_scale": scales, "blur_sigma": 0}
        },
        "random direction of OSEG's length": {
            **{"guidance": "random-direction", "random_direction_scale": scales, "blur_sigma": sigma}
        },
    }
    best = _searched(study, {label: {**axes, **same} for label, axes in methods.items()}, NONE)
    none = study.rows(NONE, "none")
    return {
        label: {
            "guidance": dict(one.guidance),
            "differences": study.statistics.differences(study.rows(one.guidance, label), none),
        }
        for label, one in best.items()
    }


def gain_of_blocks(study: Study, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Gain of each method at each block, at the scale that the search chose; what the probe says of each
    block; and the rank correlations of the two, over the blocks of all methods."""
    none = study.rows(NONE, "none")
    gains, probed, pairs = {}, {}, {}
    task = study.bench.task
    count = min(PROBE_PROMPTS, study.statistics.clips // CLIPS_PER_PROMPT)
    prompts = [task.caption(task.sample_attributes(SEARCH_SEED, index)) for index in range(count)]
    for label in ("pag", "seg", "stg", "oseg"):
        chosen = found["alone"][label]["guidance"]
        gains[label] = [
            study.statistics.differences(study.rows({**chosen, "blocks": [b]}, f"{label} block {b}"), none)
            for b in range(study.blocks)
        ]
        settings = {name: value for name, value in chosen.items() if name != "guidance"}
        method = guidance_from_flat(chosen["guidance"], settings)
        assert isinstance(method, BlockGuidance)
        seen = probe(
            study.bench.pipe,
            method,
            prompts,
            num_inference_steps=study.steps,
            **study.bench.call_arguments,
        )
        probed[label] = _by_block(seen, study.blocks)
        for quantity, values in probed[label].items():
            pairs.setdefault(quantity, []).extend(
                zip(values, [one["score"].value for one in gains[label]], strict=True)
            )
    correlations = {quantity: _correlation(values) for quantity, values in pairs.items()}
    return {"gains": gains, "probe": probed, "spearman over methods and blocks": correlations}


def _by_block(seen: Any, blocks: int) -> dict[str, list[float]]:
    """Each quantity of the probe, mean over the noise levels: one value a block."""
    found: dict[str, list[list[float]]] = {}
    for row in seen.attention:
        if row.queries == "as it is":
            for quantity in row.heads:
                found.setdefault(quantity, [[] for _ in range(blocks)])[row.block].append(row.mean(quantity))
    for row in seen.effects:
        for quantity in ("change", "cosine"):
            if getattr(row, quantity) is not None:
                every = found.setdefault(f"effect: {quantity}", [[] for _ in range(blocks)])
                every[row.block].append(getattr(row, quantity))
    return {name: [sum(one) / len(one) for one in every] for name, every in found.items()}


def _correlation(pairs: list[tuple[float, float]]) -> dict[str, float]:
    result = spearmanr(*zip(*pairs, strict=True))
    return {"rho": float(result.statistic), "p": float(result.pvalue), "points": len(pairs)}


def cost_of_reuse(
    study: Study,
    methods: Mapping[str, Mapping[str, Any]],
    policies_of: Callable[[tuple[str, ...]], Iterator[Reuse]],
) -> list[dict[str, Any]]:
    """What reused branches do to clips: differences and distance to the same without reuse, and passes.

    Of a method without reuse, to CFG at the same scale of the text, where that is among the methods; of CFG
    at another scale, to the first.

    methods: settings by label, all with text guidance. policies_of: by the branches that can be reused.
    """
    exact = {label: study.rows(guidance, label) for label, guidance in methods.items()}
    table = []
    for label, guidance in methods.items():
        values = study.statistics.values(exact[label])
        row = {"label": label, "reuse": "none", "passes": values["passes"], "values": values}
        plain = _plain(label, methods)
        if plain is not None:
            row |= {
                "minus": plain,
                "differences": study.statistics.differences(exact[label], exact[plain]),
                "distance": study.statistics.distance(exact[label], exact[plain]),
            }
        table.append(row)
        branches = ("uncond",) if guidance["guidance"] == "cfg" else ("uncond", "perturbed")
        for reuse in policies_of(branches):
            said = [f"{branch}={every:g}" for branch, every in dict(reuse.refresh).items()]
            said += [f"cache={reuse.cache:g}"] if reuse.cache else []
            own = study.rows(guidance, f"{label} {' '.join(said)}", reuse=reuse)
            table.append(
                {
                    "label": label,
                    "reuse": ",".join(said),
                    "passes": float(own.passes.mean()),
                    "values": study.statistics.values(own),
                    "differences": study.statistics.differences(own, exact[label]),
                    "distance": study.statistics.distance(own, exact[label]),
                }
            )
    return table


def _plain(label: str, methods: Mapping[str, Mapping[str, Any]]) -> str | None:
    """CFG at the same scale of the text; of CFG itself, the first that is listed."""
    same = {"guidance": "cfg", "guidance_scale": methods[label]["guidance_scale"]}
    every = [one for one, its in methods.items() if its["guidance"] == "cfg"]
    found = every if label in every else [one for one in every if methods[one] == same]
    return next((one for one in found[:1] if one != label), None)


def with_text(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Methods for `cost_of_reuse`; OSEG has the reference that does best with text, as in the recipe.

    And CFG at OSEG's scale of the text: the larger it is, the less a branch keeps.
    """
    cfg, oseg = found["plain"]["cfg"]["guidance"], found["with text"]["oseg frame"]["guidance"]
    return {
        "CFG": cfg,
        "CFG at OSEG's text scale": {**cfg, "guidance_scale": oseg["guidance_scale"]},
        "OSEG frame with text": oseg,
        "STG with text": found["with text"]["stg"]["guidance"],
    }


def one_shape(study: Study) -> list[dict[str, Any]]:
    """`test_winners` of the recipe's methods. study: of the model of one shape."""
    found = {
        "plain": {"cfg": {"guidance": _recipe_of("cfg")}},
        "with text": {method: {"guidance": _recipe_of(method)} for method in ("stg", "seg", "oseg")},
    }
    return test_winners(study, found)


def one_shape_reuse(study: Study) -> list[dict[str, Any]]:
    """`cost_of_reuse` of the recipe's methods, with few policies."""
    labels = {"CFG": "cfg", "OSEG with text": "oseg", "STG with text": "stg"}
    methods = {label: _recipe_of(method) for label, method in labels.items()}
    return cost_of_reuse(study, methods, few_policies)


def _recipe_of(method: str) -> dict[str, Any]:
    settings = shipped_recipe(f"embedded-{method}")
    assert settings is not None
    known = known_keys()
    guidance = {
        name: value for name, value in settings.items() if name in known and known[name].group == "guidance"
    }
    return {"guidance": method, **guidance}


def policies(branches: tuple[str, ...]) -> Iterator[Reuse]:
    """The grid over how often branches are computed, until when, and the threshold of the step cache."""
    for every in (2, 3):
        yield Reuse(refresh=dict.fromkeys(branches, every))
    if len(branches) > 1:
        yield Reuse(refresh={"uncond": 2, "perturbed": 3})
        yield Reuse(refresh={"uncond": 3, "perturbed": 4})
        yield Reuse(refresh={"uncond": 2, "perturbed": 3}, cache=0.1)
    yield Reuse(refresh=dict.fromkeys(branches, 0.5))
    for cache in (0.05, 0.1, 0.2):
        yield Reuse(cache=cache)


def few_policies(branches: tuple[str, ...]) -> Iterator[Reuse]:
    """One of each kind."""
    yield Reuse(refresh=dict(zip(branches, (2, 3), strict=False)))
    yield Reuse(refresh=dict.fromkeys(branches, 0.5))
    yield Reuse(cache=0.1)
