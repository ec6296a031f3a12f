"""`oseg-video vbench setup` with the real venv and pip, and two tiny packages from a local folder."""

import base64
import fcntl
import hashlib
import sys
import zipfile

import pytest

from oseg_video.cli import main
from oseg_video.evaluation.vbench import environment as vbench_environment
from oseg_video.evaluation.vbench.environment import find_environment, set_up
from oseg_video.types import OsegVideoError
from tests.said import said

pytestmark = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="VBench's packages need Python 3.11")


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch):
    """No index, one build tool, one requirement, and a data folder of the test's own."""
    (tmp_path / "wheels").mkdir()
    make_wheel(tmp_path / "wheels", "tinytool")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("tinybench==1.0\n")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(vbench_environment, "REQUIREMENTS", requirements)
    monkeypatch.setattr(vbench_environment, "_BUILD_TOOLS", ("tinytool==1.0",))
    monkeypatch.setattr(vbench_environment, "_DISK_GB", 0.01)


def make_wheel(folder, name):
    """A wheel with one module and one file of data."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{name}/data.txt": "data",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={_digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def _digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def test_a_stopped_set_up_is_not_taken_for_a_whole_one_and_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "big disk" / "vbench"
    with pytest.raises(OsegVideoError, match="not set up; `oseg-video vbench setup` builds"):
        find_environment()
    with pytest.raises(OsegVideoError, match="pip could not install"):
        set_up(where=folder)  # the requirement is not there yet
    with pytest.raises(OsegVideoError, match=r"big disk/vbench is half built; .* goes on"):
        find_environment()

    make_wheel(tmp_path / "wheels", "tinybench")
    with said() as stages:
        assert set_up().folder == folder, "the folder is remembered"
        assert [stage[:3] for stage in stages] == ["1/2", "2/2"]
        assert find_environment().python.exists()
        set_up()
        assert len(stages) == 2, "a whole environment is left alone"

    monkeypatch.setattr(vbench_environment, "REQUIREMENTS", tmp_path / "newer.txt")
    (tmp_path / "newer.txt").write_text("tinybench==1.0\n# newer\n")
    with pytest.raises(OsegVideoError, match="has other packages than this version wants"):
        find_environment()

    # What a kill during the installation leaves: pip takes the packages for installed, and files are missing.
    (site,) = folder.glob("lib/*/site-packages")
    lost = (site / "tinybench" / "data.txt", site / "tinytool-1.0.dist-info" / "RECORD")
    for path in lost:
        path.unlink()
    set_up()
    assert all(path.exists() for path in lost)
    find_environment()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--where", "{tmp}/full"],
            "{tmp}/full holds other things (thesis.txt); give --where an empty folder",
        ),
        (["--where", "{tmp}/file"], "cannot use {tmp}/file: Not a directory"),
        (["--python", "{tmp}/none"], "need Python 3.11 with venv; {tmp}/none is no program"),
        (["--python", "/bin/ls"], "need Python 3.11 with venv; /bin/ls is no Python"),
        (["--where", "{tmp}/busy"], "another `oseg-video vbench setup` is at work in {tmp}/busy"),
    ],
)
def test_refusals_touch_nothing(tmp_path, capsys, arguments, line):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "busy").mkdir()
    with open(tmp_path / "busy" / ".oseg-video.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["vbench", "setup", *(text.format(tmp=tmp_path) for text in arguments)]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert line.format(tmp=tmp_path) in printed
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "data").exists()


def test_a_full_disk_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(vbench_environment, "_DISK_GB", 10**6)
    with pytest.raises(OsegVideoError, match="GB free; VBench's packages need 1000000"):
        set_up()
