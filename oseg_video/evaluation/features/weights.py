"""Weights of the networks that metrics use: by path, or from the hub, and never unchecked code."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from oseg_video.evaluation.errors import EvaluationError

# One try: without a network the hub client's own retries take half a minute.
_TIMEOUT_SECONDS = 15


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises EvaluationError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror}") from None


def load_torchscript(path: Path, *, expected: str | None, trusted: bool, metric: str) -> tuple[Any, str]:
    """A torchscript module on the CPU in evaluation mode, and its file's SHA-256.

    Such a file is executable code. It is loaded only if its SHA-256 is the `expected` one, or if the user
    `trusted` it. Raises EvaluationError otherwise, or if it is no torchscript file.
    """
    import torch

    try:
        data = path.read_bytes()  # read once: what is checked is what is loaded
    except OSError as error:
        raise EvaluationError(f"cannot read the weights of {metric}, {path}: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected and not trusted:
        why = f"not the expected {expected}" if expected else "and no checksum is known for it"
        raise EvaluationError(
            f"{path} is a torchscript file, which can run any code; its SHA-256 is {digest}, {why}; "
            "load it all the same with --trust-weights if you trust its source"
        )
    try:
        return torch.jit.load(io.BytesIO(data), map_location="cpu").eval(), digest
    except RuntimeError:
        raise EvaluationError(f"{path} is not a torchscript file") from None


def fetch(repository: str, name: str, *, metric: str) -> Path:
    """A file of a hub repository, downloaded unless cached; large files are checked against their checksum.

    Raises EvaluationError saying how to give a path instead.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        commit = HfApi().model_info(repository, timeout=_TIMEOUT_SECONDS).sha
        path = Path(hf_hub_download(repository, name, revision=commit))
    except Exception as error:  # the hub client's errors have many types, and change with its HTTP library
        cached = _cached(repository, name)
        if cached is None:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise EvaluationError(
                f"cannot fetch {name} of {repository} for {metric} ({lines[0] if lines else type(error)}); "
                f"download it elsewhere and give --weights {metric}=PATH"
            ) from None
        path = cached
    # The cache names a large file (Git LFS) by the SHA-256 that the hub states for it.
    stated = path.resolve().name
    if len(stated) == 64 and file_sha256(path) != stated:
        raise EvaluationError(f"{path} is damaged: its SHA-256 is not {stated}; delete it and try again")
    return path


def _cached(repository: str, name: str) -> Path | None:
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        path = try_to_load_from_cache(repository, name)
    except errors.HFValidationError:  # no name of a repository
        return None
    return Path(path) if isinstance(path, str) else None
