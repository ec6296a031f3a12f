"""A tensor whose values come after it was handed out."""

import weakref

from torch import Tensor

from oseg_video.engine.errors import GuidanceError


class LateAnswer:
    """A result that the pipeline holds while it asks for the next one; it is written once it is known."""

    def __init__(self, handed_out: Tensor) -> None:
        self._reference = weakref.ref(handed_out)

    def write(self, value: Tensor) -> None:
        """Raises `GuidanceError` where the pipeline has let go of the tensor: it works on a copy."""
        tensor = self._reference()
        if tensor is None:
            raise GuidanceError(
                "the pipeline copies one prediction before it asks for the next, so that guidance over "
                "both cannot reach it; this version of diffusers is not supported"
            )
        tensor.copy_(value)
