"""What to say to someone who mistyped a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def known_or_nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'steps'?", or the list of all known names when none is close."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names)}"
