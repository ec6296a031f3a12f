"""The page of a probe: small multiples over blocks, one panel for each quantity and noise level."""

from __future__ import annotations

import html

from oseg_video.charts import Series, chart
from oseg_video.probing.result import AS_IT_IS, ProbeResult

_QUANTITIES = {
    "entropy": "attention entropy, nats",
    "energy": "energy",
    "covariance_norm": "||diag(a) - a a'||",
    "curvature": "curvature of the energy",
    "orthogonal": "share of the query orthogonal to its key",
}
_STYLE = """body { font: 14px sans-serif; margin: 2em; color: #222 }
section { display: flex; flex-wrap: wrap; gap: 12px }
h2 { font-size: 15px; margin: 1.5em 0 .5em } table { border-collapse: collapse } pre { overflow-x: auto }"""


def page_text(result: ProbeResult) -> str:
    """One HTML file without scripts, which opens from disk."""
    sections = [("What perturbing one block alone does to the prediction", _effects(result))]
    for name, words in _QUANTITIES.items():
        sections.append((words, _attention(result, name)))
    body = "\n".join(
        f"<h2>{html.escape(title)}</h2>\n<section>\n{''.join(panels)}\n</section>"
        for title, panels in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Probe</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><h1>Probe of {html.escape(result.family)}</h1>\n{body}\n"
        f"<h2>Numbers</h2>\n<pre>{html.escape(result.table())}</pre></body></html>\n"
    )


def _effects(result: ProbeResult) -> list[str]:
    def over_blocks(what: str) -> list[Series]:
        found = []
        for level in result.noise_levels:
            points = []
            for block in result.paths:
                value = result.effect(block, level) if what == "change" else result.cosine(block, level)
                if value is not None:
                    points.append((float(block), value))
            if points:
                found.append(Series(f"noise level {level:.2f}", points))
        return found

    panels = [chart(over_blocks("change"), title="||C - C~|| / ||C||", x="block", y="relative change")]
    if cosines := over_blocks("cosine"):
        panels.append(chart(cosines, title="cosine of C - C~ with C - U", x="block", y="cosine"))
    return panels


def _attention(result: ProbeResult, quantity: str) -> list[str]:
    panels = []
    for level in result.noise_levels:
        series = [
            Series(
                queries,
                [
                    (float(block), result.quantity(block, quantity, queries=queries, noise_level=level))
                    for block in result.paths
                ],
                dashed=queries != AS_IT_IS,
            )
            for queries in result.transforms
        ]
        panels.append(chart(series, title=f"noise level {level:.2f}", x="block", y=quantity))
    return panels
