"""Where sampling stands: the step and its noise level, read from the pipeline's scheduler."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from oseg_video.engine.errors import GuidanceError
from oseg_video.types import Pipeline, Scheduler
from oseg_video.waits import place_in, values_of


@dataclass(frozen=True)
class Position:
    """One sampling step."""

    index: int
    """Step index, from 0; a pipeline that samples window after window begins anew in each."""
    count: int
    """Number of sampling steps."""
    noise_level: float
    """1 is pure noise, 0 is clean."""


class Sampler:
    """The scheduler of one pipeline call, and where it stands."""

    def __init__(self, pipe: Pipeline, *, windows: bool = False) -> None:
        """windows: whether the pipeline begins anew in each of several windows."""
        self._pipe = pipe
        self._windows = windows
        self._first = -1
        self._last = -1

    def next_step(self, timestep: Any) -> Position:
        """The step that a denoiser call begins; `timestep` is the one that the call was given.

        The first step is where the pipeline begins: one that starts from a given video runs the scheduler's
        last steps only, one that leaves the end to a refiner (SDXL's denoising_end) the first ones. Raises
        GuidanceError where sampling does not go on, as when someone else's call takes a step.
        """
        place = self._place(timestep, self._last + 1)
        if self._last < 0 or (self._windows and place <= self._last):
            self._first = place
        elif place <= self._last:
            raise GuidanceError(
                f"the denoiser was called again at step {place - self._first}, as by a second pipeline that "
                f"a callback calls and that was built inside guided() from single parts of the guided one; "
                f"build it from the guided pipeline's components, or before"
            )
        self._last = place
        scheduler, frames = self._pipe.scheduler, self._frames()
        level = noise_level(scheduler, place) if frames is None else mean_noise_level(scheduler, frames)
        return Position(place - self._first, self._pipe.num_timesteps, min(max(level, 0.0), 1.0))

    def sigma(self, scheduler: Scheduler) -> float:
        """The noise level of a scheduler of flow matching at the step that was begun last."""
        return values_of(scheduler.sigmas)[self._last]

    def in_same_step(self, timestep: Any) -> bool:
        """Whether a denoiser call belongs to the step that was begun last."""
        return self._place(timestep, self._last) == self._last

    def _place(self, timestep: Any, earliest: int) -> int:
        """Index into the scheduler's timesteps, from `earliest` up where the scheduler does not count."""
        scheduler, pipe = self._pipe.scheduler, self._pipe
        if (frames := self._frames()) is not None:
            return int(frames.storage_offset()) // len(frames)
        for name in ("step_index", "begin_index"):
            if getattr(scheduler, name, None) is not None:
                return int(getattr(scheduler, name))
        current = getattr(pipe, "current_timestep", None)
        if current is None:
            current = timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep
        if hasattr(scheduler, "step_index"):  # which it will find by itself at its first step
            return int(scheduler.index_for_timestep(current))
        # Pipelines walk through the tensor of timesteps, so no value need be read.
        if (own := place_in(scheduler.timesteps, current)) is not None:
            return own
        distances = [abs(one - float(current)) for one in values_of(scheduler.timesteps)]
        # The same timestep may come again (PNDM's second one does).
        places = [place for place, distance in enumerate(distances) if distance == min(distances)]
        if self._last < 0:
            start = len(distances) - pipe.num_timesteps
            return start if start in places else places[0]
        return next((place for place in places if place >= earliest), places[-1])

    def _frames(self) -> Tensor | None:
        """The timestep of every frame, where each has its own: a row of the matrix that the pipeline follows.

        So it is in diffusion forcing; the pipeline's scheduler then stands still, each frame has a copy.
        """
        current = getattr(self._pipe, "current_timestep", None)
        return current if isinstance(current, Tensor) and current.ndim else None


def mean_noise_level(scheduler: Scheduler, timesteps_F: Tensor) -> float:
    """Mean share of noise in the frames that are not clean, of a scheduler of flow matching."""
    noisy = [timestep for timestep in values_of(timesteps_F) if timestep > 0]
    mean: float = sum(noisy) / max(len(noisy), 1) / scheduler.config.num_train_timesteps
    return mean


def noise_level(scheduler: Scheduler, index: int) -> float:
    """Share of noise at a step, on the scale of flow matching: `x = (1 - level) data + level noise`.

    For flow matching it is sigma itself. Other schedulers scale data and noise differently; the level is
    the one with the same ratio s of noise to data, `s / (1 + s)`: s is the sigma of k-diffusion's schedulers
    (EDM, arXiv 2206.00364), and `sqrt((1 - abar) / abar)` for the ones that know `alphas_cumprod` only.
    """
    config = scheduler.config
    if getattr(scheduler, "sigmas", None) is None:
        kept = values_of(scheduler.alphas_cumprod)[int(values_of(scheduler.timesteps)[index])]
        noise, data = math.sqrt(1 - kept), math.sqrt(kept)
        return noise / (noise + data)
    sigma = _sigma(scheduler, index)
    if config.get("invert_sigmas"):  # Mochi's scheduler counts from noise to data.
        return 1 - sigma
    flow = (
        any(kind in type(scheduler).__name__ for kind in ("FlowMatch", "AncestralRF"))
        or config.get("use_flow_sigmas")
        or config.get("prediction_type") == "flow_prediction"
    )
    return sigma if flow else sigma / (1 + sigma)


def _sigma(scheduler: Scheduler, index: int) -> float:
    """The sigma that the network is asked at; some second-order schedulers ask between two of theirs."""
    if getattr(scheduler, "state_in_first_order", True) or not hasattr(scheduler, "alphas_cumprod"):
        return values_of(scheduler.sigmas)[index]
    timestep = values_of(scheduler.timesteps)[index]
    kept = values_of(scheduler.alphas_cumprod)
    low, high = (
        math.log((1 - kept[place]) / kept[place]) / 2 for place in (math.floor(timestep), math.ceil(timestep))
    )
    return math.exp(low + (timestep % 1) * (high - low))
