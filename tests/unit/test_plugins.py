"""Packages of others are imported through their entry points, and one that fails is named."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from oseg_video import adapters, plugins
from oseg_video.cli import main
from oseg_video.sweeps.engines import cluster, processes


def test_a_file_in_its_room_is_all_that_registers_a_family() -> None:
    files = Path(adapters.__file__).parent.glob("*.py")
    families = {path.stem for path in files if "\n@register_adapter\n" in path.read_text(encoding="utf-8")}
    assert {type(adapter).__module__.rpartition(".")[2] for adapter in adapters.all_adapters()} == families
    listed = Path(adapters.__file__).read_text(encoding="utf-8")
    assert not [name for name in families if name in listed]


def test_modules_of_other_packages_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_methods.py").write_text("loaded = True")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("own", "own_methods", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    plugins.load_plugins()
    assert sys.modules.pop("own_methods").loaded


def test_the_processes_of_a_sweep_load_them_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family is registered by the import of its module, which a process of its own has not behind it."""
    monkeypatch.chdir(tmp_path)  # an actor goes to the driver's folder

    def load() -> None:
        raise plugins.PluginError("was loaded")

    where = str(tmp_path)
    starts = {
        processes: lambda: processes._work(None, where, None, 1),
        cluster: lambda: cluster._Actor(where, where, [None], 1),
    }
    for module, start in starts.items():
        monkeypatch.setattr(module, "load_plugins", load)
        with pytest.raises(plugins.PluginError, match="was loaded"):
            start()


def test_one_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    point = EntryPoint("own", "not_there", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    assert main(["models"]) == 2
    assert "cannot import not_there" in capsys.readouterr().err
