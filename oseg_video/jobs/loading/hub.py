"""The model hub: what a repository is, and its files on this machine. Nothing else needs a network."""

from __future__ import annotations

from pathlib import Path

from oseg_video.types import OsegVideoError

# One try: without a network the hub client's own retries take half a minute.
_TIMEOUT_SECONDS = 15


class HubError(OsegVideoError):
    """A hub repository that cannot be had; the message says why, and what to do."""


def find_commit(repository: str, revision: str | None) -> str:
    """The commit that `revision` (default: the main branch) stands for, from the hub or from the local cache.

    Raises HubError if the repository does not exist, asks for permission, or neither place has it.
    """
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
    except errors.RevisionNotFoundError:
        raise HubError(f"{repository} has no revision {revision!r}") from None
    except errors.GatedRepoError:  # one kind of the next
        raise _permission_missing(repository) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise HubError(f"the hub has no public repository {repository!r}") from None
    except Exception as error:  # connection errors: their types changed with the hub client's HTTP library
        cached = _cached_commit(repository, revision)
        if cached is None and _is_refusal(error):
            raise _permission_missing(repository) from None
        if cached is None:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise HubError(
                f"cannot reach the hub for {repository} ({reason}), and it is not in the local cache; "
                "give --model the path of a downloaded pipeline, or leave --model out for the embedded model"
            ) from None
        return cached
    return info.sha or revision or "main"


def fetch_file(repository: str, commit: str, name: str) -> Path:
    """One small file of the repository. Raises HubError if it has none of this name."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=commit))
    except errors.EntryNotFoundError:
        raise HubError(f"{repository} is not a diffusers pipeline: it has no {name}") from None
    except Exception as error:
        raise _failure(repository, error) from None


def fetch_pipeline(repository: str, commit: str, variant: str | None) -> Path:
    """Folder of the pipeline's files, downloaded unless cached. Raises HubError."""
    from diffusers import DiffusionPipeline

    try:
        return Path(
            DiffusionPipeline.download(repository, revision=commit, variant=variant, use_safetensors=True)
        )
    except Exception as error:
        raise _failure(repository, error) from error


def _failure(repository: str, error: BaseException) -> HubError:
    """What a download that has failed is to the user."""
    if _is_refusal(error):
        return _permission_missing(repository)
    return HubError(f"cannot download {repository}: {_first_line(error)}")


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the hub asks who we are (401) or refuses who we are (403), however libraries wrap that."""
    from huggingface_hub import errors

    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError) or status in (401, 403):
            return True
        error = error.__cause__ or error.__context__
    return False


def _permission_missing(repository: str) -> HubError:
    return HubError(
        f"{repository} asks for permission: accept its terms on the hub, then run `hf auth login`"
    )


def _cached_commit(repository: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repository, "model_index.json", revision=revision)
    return Path(index).parent.name if isinstance(index, str) else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
