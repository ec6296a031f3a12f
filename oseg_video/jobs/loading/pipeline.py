"""From the name of a model to a pipeline that is ready to run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from oseg_video.adapters import ModelAdapter, adapter_for_class, all_adapters
from oseg_video.config import GenerateJob
from oseg_video.embedded import MODELS, component_path, shared_components
from oseg_video.files import expanded
from oseg_video.jobs.loading import hub
from oseg_video.jobs.loading.device import resolve_device
from oseg_video.jobs.loading.errors import LoadError
from oseg_video.jobs.loading.memory import Load, Weights, check_memory
from oseg_video.jobs.loading.weights import check_shareable, encoder_components, share_weights
from oseg_video.jobs.progress import loading_bars
from oseg_video.parallel.mesh import ONE_RANK, Mesh
from oseg_video.settings.suggest import known_or_nearest
from oseg_video.types import Pipeline

_INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Files up to this many bytes count for a model's fingerprint in full, larger ones by size and both ends.
_FINGERPRINT_BYTES = 1 << 20
_MODEL_FILES = (".json", ".safetensors", ".model", ".txt")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, before any of its weights are read."""

    name: str
    """What the user asked for."""
    pipeline: str
    """diffusers class named by the model's index."""
    adapter: ModelAdapter
    recipe: str
    """Name of its recipe: its own for a model in the package, of others the family."""
    directory: Path | None
    """Folder of a local pipeline; None if it is on the hub."""
    repository: str | None = None
    """Hub repository."""
    commit: str | None = None
    """Commit of the hub repository."""
    index: dict[str, Any] = field(default_factory=dict)
    """The pipeline's model_index.json."""

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the model, fetched from the hub if it is there. Raises LoadError or HubError."""
        if name == _INDEX:
            return self.index
        if self.directory is not None:
            component, _, file = name.rpartition("/")
            return _read_json(component_path(self.directory, component) / file)
        return _read_json(hub.fetch_file(str(self.repository), str(self.commit), name))

    def pipeline_for(self, *, image: bool) -> str:
        """The class that makes a clip from text, or from an image and text. Raises LoadError.

        The family must have one of this kind. Only weights that serve both are taken for the kind that their
        index does not name.
        """
        adapter = self.adapter
        wanted = str(adapter.image_to_video if image else adapter.text_to_video)
        if self.pipeline in (wanted, *adapter.universal_pipelines):
            return self.pipeline
        if self.pipeline in adapter.other_pipelines:
            served = [name for name in adapter.pipelines if name not in adapter.other_pipelines]
            raise LoadError(f"generate cannot run a {self.pipeline}; it runs {', '.join(served)}")
        if adapter.serves_both(self.index):
            return wanted
        if image:
            weights = f"for --image use weights of a {wanted}, such as {adapter.image_repository}"
            raise LoadError(f"{self.name} makes clips from text only; {weights}")
        raise LoadError(f"{self.name} makes clips from an image; give it one with --image")


def find_model(name: str, revision: str | None = None, *, image: bool = False) -> ModelSource:
    """What `--model NAME` stands for: a shipped model, a family, a pipeline directory or a hub repository.

    image: whether a family's weights for image to video are wanted. Reads the model's index only. Raises
    LoadError, HubError, or UnsupportedPipelineError naming the supported pipelines.
    """
    families = _families()
    if name in MODELS:
        return _find_directory(name, MODELS[name], recipe=name)
    if name in families:
        adapter = families[name]
        repository = (image and adapter.image_repository) or adapter.hub_repository
        return _find_repository(name, repository, revision)
    path = expanded(name)
    if path.is_dir():
        return _find_directory(name, path)
    if path.exists():
        raise LoadError(f"{name} is a file; --model takes the folder of a diffusers pipeline")
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "~")):
        return _find_repository(name, name, revision)
    known = [*MODELS, *families]
    raise LoadError(
        f"no model {name!r}: no such folder, and not a hub repository (owner/name); "
        f"{known_or_nearest(name, known)}"
    )


def recipe_of(name: str, revision: str | None = None) -> str:
    """The recipe of `--model NAME`, without a look at the files of a family. Raises as `find_model`."""
    return name if name in MODELS or family(name) else find_model(name, revision).recipe


def family(name: str) -> ModelAdapter | None:
    """The adapter of a family by its name."""
    return _families().get(name)


def load_pipeline(
    source: ModelSource,
    job: GenerateJob,
    *,
    mesh: Mesh = ONE_RANK,
    shard_weights: bool = False,
    count: Callable[[torch.dtype], tuple[int, int]] = lambda dtype: (0, 0),
) -> Any:
    """The pipeline with its weights, placed as the job says. Raises LoadError, HubError or ParallelError.

    mesh: of the ranks that make a clip together, all but the first do without encoders (`first_rank`).
    shard_weights: those that share the tokens of a clip share the denoiser's weights as well.
    count: gives the bytes of activations in a step of the denoiser, and while the clip is decoded, with the
    weights in a dtype. What the job needs is compared with the memory that is free before they are read.
    """
    device = resolve_device(job.device)
    dtype = resolve_dtype(job.dtype, device)
    if shard_weights:
        check_shareable(source.adapter, mesh.sequence.size, job.offload)
    absent = encoder_components(source.index) if mesh.clip.rank > 0 else []
    directory = source.directory
    if directory is None:
        with loading_bars():
            directory = hub.fetch_pipeline(str(source.repository), str(source.commit), job.variant)
    variant = job.variant if _has_variant(directory, job.variant) else None
    components = component_weights(directory, variant, dtype, source.adapter)
    _check_weights(directory, components)
    _check_attention(directory, components)
    present = {name: weights for name, weights in components.items() if name not in absent}
    load = Load(
        present,
        dtype,
        *count(dtype),
        denoisers=source.adapter.denoiser_attributes,
        owners=mesh.sequence.size if shard_weights else 1,
    )
    narrow = _in_bfloat16(load, source.adapter) if dtype.itemsize > 2 else None
    tiles = source.adapter.vae_tiles and not job.vae_tiling
    pin = check_memory(load, device, job.offload, mesh=mesh, narrow=narrow, tiles=tiles)
    dtypes = {"default": dtype, **{name: weights.dtype for name, weights in components.items()}}
    pipeline_class = source.adapter.pipeline_class(source.pipeline_for(image=job.image is not None))
    pipe = _read_pipeline(source, pipeline_class, directory, variant, dtypes, absent)
    if shard_weights:
        share_weights(pipe, source.adapter, mesh.sequence, device)
    _place(pipe, device, job.offload, pin=pin)
    pipe.set_progress_bar_config(disable=True)
    if job.vae_tiling:
        pipe.vae.enable_tiling()
    if job.compile:
        for denoiser in source.adapter.denoisers(pipe):
            source.adapter.compile_blocks(denoiser)
    return pipe


def _read_pipeline(
    source: ModelSource,
    pipeline_class: Any,
    directory: Path,
    variant: str | None,
    dtypes: Mapping[str, torch.dtype],
    absent: Sequence[str],
) -> Any:
    """A pipeline of that class from its files, on the CPU. Raises LoadError.

    dtypes: of its components, by name, and of all others by "default". absent: components it does without.
    """
    try:
        with loading_bars():
            shared = {
                name: _known_class(*source.index[name]).from_pretrained(folder, torch_dtype=dtypes[name])
                for name, folder in shared_components(directory).items()
            }
            return pipeline_class.from_pretrained(
                directory,
                torch_dtype=dict(dtypes),
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                **shared,
                **dict.fromkeys(absent),
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors raise a dozen types here
        raise LoadError(f"cannot load {source.name}: {_first_line(error)}") from error


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the weights; `auto` is bfloat16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def fingerprint(directory: Path) -> str:
    """SHA-256 over a pipeline's files: names, sizes, and contents (both ends only of files above 1 MiB)."""
    digest = hashlib.sha256()
    folders = {"": directory, **shared_components(directory)}
    paths = {
        Path(at, path.relative_to(folder)): path
        for at, folder in folders.items()
        for path in folder.rglob("*")
    }
    for name, path in sorted(paths.items()):
        if path.suffix not in _MODEL_FILES:
            continue
        size = path.stat().st_size
        digest.update(f"{name.as_posix()}:{size}:".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
            if size > _FINGERPRINT_BYTES:
                file.seek(max(size - _FINGERPRINT_BYTES, _FINGERPRINT_BYTES))
                digest.update(file.read())
    return digest.hexdigest()


def component_weights(
    directory: Path, variant: str | None, dtype: torch.dtype, adapter: ModelAdapter
) -> dict[str, Weights]:
    """The weights of every model component, with the dtype that it is loaded in."""
    index = _read_json(directory / _INDEX)
    found = {}
    for name, files in weight_files(directory, variant):
        own = adapter.component_dtype(name, dtype)
        found[name] = Weights(files, own, _float32_modules(index[name], own))
    return found


def weight_files(directory: Path, variant: str | None) -> Iterator[tuple[str, list[Path]]]:
    """The weight files of every model component, preferring the variant's where the component has them."""
    index = _read_json(directory / _INDEX)
    for name in index:
        folder = component_path(directory, name)
        if name.startswith("_") or not (folder / "config.json").is_file():
            continue
        files = sorted(folder.glob("*.safetensors"))
        special = [file for file in files if variant and f".{variant}" in file.name]
        plain = [file for file in files if len(file.suffixes) == 1]
        yield name, special or plain or files


def _in_bfloat16(load: Load, adapter: ModelAdapter) -> Load:
    """The same job with `--dtype bfloat16`."""
    components = {
        name: replace(one, dtype=adapter.component_dtype(name, torch.bfloat16))
        for name, one in load.components.items()
    }
    half = torch.bfloat16.itemsize / load.dtype.itemsize
    vae = (
        adapter.component_dtype("vae", torch.bfloat16).itemsize
        / adapter.component_dtype("vae", load.dtype).itemsize
    )
    return replace(
        load,
        components=components,
        dtype=torch.bfloat16,
        activations=int(load.activations * half),
        decoding=int(load.decoding * vae),
    )


def _has_variant(directory: Path, variant: str | None) -> bool:
    # A recipe names the variant of the hub repository; a local copy of the model may not have it.
    return variant is not None and any(directory.glob(f"*/*.{variant}*.safetensors"))


def _families() -> dict[str, ModelAdapter]:
    return {adapter.family: adapter for adapter in all_adapters()}


def _float32_modules(entry: Any, dtype: torch.dtype) -> Collection[str]:
    """Names of the submodules that the libraries keep in float32 when they load a component in `dtype`."""
    try:
        library, class_name = entry
        if library not in _LIBRARIES:
            return ()
        component = _known_class(library, class_name)
    except (ImportError, AttributeError, TypeError, ValueError):  # an unknown class: loading it will say so
        return ()
    strict = getattr(component, "_keep_in_fp32_modules_strict", None) or ()
    loose = getattr(component, "_keep_in_fp32_modules", None) or ()
    # transformers heeds the second list for float16 only, diffusers always.
    return {*strict, *(loose if library == "diffusers" or dtype == torch.float16 else ())}


def _known_class(library: str, name: str) -> Any:
    return getattr(importlib.import_module(library), name)


def _check_weights(directory: Path, components: dict[str, Weights]) -> None:
    for name, weights in components.items():
        if not weights.files:
            raise LoadError(f"missing weights: {component_path(directory, name)} has no .safetensors file")


def _find_directory(name: str, directory: Path, recipe: str | None = None) -> ModelSource:
    if not (directory / _INDEX).is_file():
        raise LoadError(f"{directory} is not a pipeline directory: it has no {_INDEX}")
    adapter, pipeline, index = _read_index(directory / _INDEX)
    return ModelSource(name, pipeline, adapter, recipe or adapter.family, directory, index=index)


def _find_repository(name: str, repository: str, revision: str | None) -> ModelSource:
    commit = hub.find_commit(repository, revision)
    adapter, pipeline, index = _read_index(hub.fetch_file(repository, commit, _INDEX))
    return ModelSource(name, pipeline, adapter, adapter.family, None, repository, commit, index)


def _read_index(path: Path) -> tuple[ModelAdapter, str, dict[str, Any]]:
    index = _read_json(path)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise LoadError(f"{path} does not name a pipeline class")
    adapter = adapter_for_class(pipeline)
    for name, entry in index.items():
        if isinstance(entry, list) and not _is_known_class(*entry):
            raise LoadError(
                f"{path}: {name} is {entry}, which would run code of the model; a model may name classes of "
                f"{' and '.join(_LIBRARIES)} only"
            )
    return adapter, pipeline, index


def _is_known_class(library: Any = None, name: Any = None, *_: Any) -> bool:
    """Whether a model may name a class: to import a module is to run it, and a model is but data.

    None where the pipeline does without the component. diffusers' pipelines have modules of their own, which
    go by their bare name. transformers' Auto classes run what the component's files name. Versions of
    diffusers differ in what they refuse here themselves.
    """
    if library == "transformers":
        return not str(name).startswith("Auto")
    if library is None or library in _LIBRARIES:
        return True
    own = isinstance(library, str) and library.isidentifier()
    return own and importlib.util.find_spec(f"diffusers.pipelines.{library}") is not None


def _check_attention(directory: Path, names: Iterable[str]) -> None:
    """Refuse components whose attention is a kernel that transformers would fetch from the hub and run."""
    for name in names:
        folder = component_path(directory, name)
        asked = [_read_json(folder / "config.json")]
        for config in asked:
            for key, value in config.items():
                if isinstance(value, dict):
                    asked.append(value)
                elif key.endswith("attn_implementation") and "/" in str(value):
                    raise LoadError(f"{folder}: {key} {value!r} would run code from the hub; remove it")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise LoadError(f"{path} is not valid JSON") from None
    if not isinstance(content, dict):
        raise LoadError(f"{path} is not a JSON object")
    return content


def _place(pipe: Pipeline, device: torch.device, offload: str, *, pin: bool) -> None:
    """pin: group offloading may pin all weights in main memory."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(
            onload_device=device,
            offload_type="leaf_level",
            use_stream=device.type == "cuda",
            low_cpu_mem_usage=not pin,
        )
    else:
        pipe.to(device)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
