"""What the tests of sweeps share."""

import pytest

from oseg_video.jobs.loading import pipeline as loading
from oseg_video.sweeps import worker
from tests.sweeps import Painter


@pytest.fixture
def painter(monkeypatch):
    """Workers of this process paint noise instead of sampling; the class counts what it does."""
    monkeypatch.setattr(Painter, "loaded", 0)
    monkeypatch.setattr(Painter, "painted", [], raising=False)
    monkeypatch.setattr(worker, "LoadedModel", Painter)
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: None)
    return Painter
