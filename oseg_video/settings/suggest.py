"""What to say to someone who mistyped a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def known_or_nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "did you mean 'steps'?"; when no name is close, `otherwise`, or the list of all that are known."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else otherwise or f"known: {', '.join(names)}"
