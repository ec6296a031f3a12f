"""Another attribute or another class of one object, never of its class, for the time being."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give one instance another attribute while this is open; then it has what it had before."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def swapped_class(target: Any, other: type) -> Iterator[None]:
    """Make one instance one of another class while this is open."""
    original = type(target)
    target.__class__ = other
    try:
        yield
    finally:
        target.__class__ = original
