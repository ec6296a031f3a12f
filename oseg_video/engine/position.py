"""Where sampling stands: the step and its noise level, read from the pipeline's scheduler."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Position:
    """One sampling step."""

    index: int
    """Step index, from 0."""
    count: int
    """Number of sampling steps."""
    noise_level: float
    """1 is pure noise, 0 is clean."""


def sampling_position(pipe: Any, timestep: Any) -> Position:
    """The step that a denoiser call belongs to; `timestep` is the one that the call was given."""
    scheduler, count = pipe.scheduler, pipe.num_timesteps
    place = _schedule_index(pipe, timestep)
    # A pipeline that starts from a given video runs the scheduler's last steps only; one that leaves the end
    # to a refiner (SDXL's denoising_end) runs the first ones, and then says where it begins.
    begin = getattr(scheduler, "begin_index", None)
    first = len(scheduler.timesteps) - count if begin is None else int(begin)
    return Position(place - first, count, min(max(noise_level(scheduler, place), 0.0), 1.0))


def _schedule_index(pipe: Any, timestep: Any) -> int:
    """Index into the scheduler's timesteps."""
    scheduler = pipe.scheduler
    for name in ("step_index", "begin_index"):
        if getattr(scheduler, name, None) is not None:
            return int(getattr(scheduler, name))
    current = getattr(pipe, "current_timestep", None)
    if current is None:
        current = timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep
    if hasattr(scheduler, "index_for_timestep"):
        return int(scheduler.index_for_timestep(current))
    return scheduler.timesteps.tolist().index(float(current))


def noise_level(scheduler: Any, index: int) -> float:
    """Share of noise at a step, on the scale of flow matching: `x = (1 - level) data + level noise`.

    For flow matching it is sigma itself. Other schedulers scale data and noise differently; the level is
    the one with the same ratio s of noise to data, `s / (1 + s)`: s is the sigma of k-diffusion's schedulers
    (EDM, arXiv 2206.00364), and `sqrt((1 - abar) / abar)` for the ones that know `alphas_cumprod` only.
    """
    config = scheduler.config
    if getattr(scheduler, "sigmas", None) is None:
        kept = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
        noise, data = math.sqrt(1 - kept), math.sqrt(kept)
        return noise / (noise + data)
    sigma = float(scheduler.sigmas[index])
    if config.get("invert_sigmas"):  # Mochi's scheduler counts from noise to data.
        return 1 - sigma
    flow = (
        "FlowMatch" in type(scheduler).__name__
        or config.get("use_flow_sigmas")
        or config.get("prediction_type") == "flow_prediction"
    )
    return sigma if flow else sigma / (1 + sigma)
