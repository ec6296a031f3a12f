"""What the program's logger says, whatever shows it."""

import contextlib
import logging

from oseg_video.console import logger


@contextlib.contextmanager
def said(level=logging.INFO):
    """A list that takes the lines of the logger while this is open."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
