"""The libraries' warnings, meant for their developers. Imports none of them: it is used before they are."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what they warn of off the user's screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # These two set the level of their loggers when they are first imported, from the environment.
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for name in ("huggingface_hub", "imageio", "imageio_ffmpeg", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
