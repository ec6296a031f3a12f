"""All that guiding changes on the user's objects, each undone on leaving.

README.md of the engine lists the seven; every other module leaves the pipeline and its parts alone.
"""

from oseg_video.engine.patching.objects import replaced, swapped_class

__all__ = ["replaced", "swapped_class"]
