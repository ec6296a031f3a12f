"""Files are written whole or not at all, and replace nothing but what this program made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from oseg_video import files
from oseg_video.files import MARK, FileError, atomic_path, check_place, is_ours, put, read_text, write_text
from oseg_video.media import write_clip

FRAMES = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
MANIFEST = '{"schema": 1, "made_by": "oseg-video"}'


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("existing", [False, True])
def test_a_stop_before_the_rename_leaves_things_as_they_were(
    tmp_path: Path, error: type[BaseException], existing: bool
) -> None:
    path = tmp_path / "a.mp4"
    if existing:
        path.write_bytes(MARK.encode())
    with pytest.raises(FileError if error is OSError else error), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == (["a.mp4"] if existing else [])
    assert not existing or path.read_bytes() == MARK.encode()


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"^cannot write .*a.json: No such file or directory$"):
        write_text(tmp_path / "missing" / "a.json", "{}")


@pytest.mark.parametrize("format", ["mp4", "gif", "png"])
def test_a_clip_says_who_made_it_and_can_be_replaced(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    path = path if format == "png" else path.with_suffix(f".{format}")
    for count in (3, 2):
        write_clip(path, FRAMES[:count], 8, format=format, comment=MANIFEST)
        assert is_ours(path)
    assert len(list(path.iterdir()) if format == "png" else [1, 2]) == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["a.json", "a.md", "a.tex", "a.html"])
def test_a_text_says_who_made_it_and_reads_as_it_was_written(tmp_path: Path, name: str) -> None:
    for text in (MANIFEST, f"{MANIFEST}\n"):
        write_text(tmp_path / name, text)
        assert is_ours(tmp_path / name) and read_text(tmp_path / name) == text


@pytest.mark.parametrize(
    "content", [b"%PDF-1.4 a thesis", b'{"made_by": "someone"}', b"method,score\ncfg,1\n", b"oseg-video"]
)
def test_what_others_made_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for write in (lambda: check_place(path), lambda: write_text(path, MANIFEST)):
        with pytest.raises(FileError, match=r"a\.json is in the way and was not made by oseg-video"):
            write()
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_a_file_never_replaces_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "frames.json", FRAMES, 8, format="png")
    with pytest.raises(FileError, match="is a folder and is not replaced by a file"):
        write_text(tmp_path / "frames.json", MANIFEST)
    write_text(tmp_path / "a", MANIFEST)
    with pytest.raises(FileError, match="is a file and is not replaced by a folder of frames"):
        write_clip(tmp_path / "a", FRAMES, 8, format="png")
    assert len(list((tmp_path / "frames.json").iterdir())) == 3 and (tmp_path / "a").read_text() == MANIFEST


@pytest.mark.parametrize("beside", ["notes.txt", "beach.png", "00001.png/deep.txt", ".hidden"])
def test_a_folder_with_anything_else_stays(tmp_path: Path, beside: str) -> None:
    folder = tmp_path / "a"
    write_clip(folder, FRAMES[:1], 8, format="png")
    (folder / beside).parent.mkdir(exist_ok=True)
    (folder / beside).write_text("mine")
    with pytest.raises(FileError, match="not made by oseg-video"):
        write_clip(folder, FRAMES, 8, format="png")
    assert (folder / beside).read_text() == "mine"


def test_frames_that_others_made_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "a" / "00000.png")
    with pytest.raises(FileError, match="not made by oseg-video"):
        write_clip(tmp_path / "a", FRAMES, 8, format="png")
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_what_holds_nothing_can_be_replaced_and_a_link_to_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    (tmp_path / "b").mkdir()
    write_text(tmp_path / "a.json", MANIFEST)
    write_clip(tmp_path / "b", FRAMES, 8, format="png")
    (tmp_path / "c.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileError, match="not made by oseg-video"):
        check_place(tmp_path / "c.json")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_an_interruption_while_a_folder_is_replaced_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, stop_at: int
) -> None:
    """Ctrl-C before the n-th rename of those that put a folder in the place of another."""
    old = tmp_path / "a"
    write_clip(old, FRAMES[:1], 8, format="png")
    rename, swap, calls = Path.rename, files._exchange, []

    def stopping(*arguments: Path, through: bool) -> object:
        calls.append(arguments)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return swap(*arguments) if through else rename(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda one, other: stopping(one, other, through=False))
        patch.setattr(
            files, "_exchange", (lambda *a: stopping(*a, through=True)) if exchange else lambda *a: 0
        )
        try:
            write_clip(old, FRAMES, 8, format="png")
        except KeyboardInterrupt:
            assert len(list(old.iterdir())) == 1
        else:
            assert len(list(old.iterdir())) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_swapped_at_once_where_the_disk_can(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path, count in ((one, 1), (other, 2)):
        write_clip(path, FRAMES[:count], 8, format="png")
    put(one, other)
    assert len(list(other.iterdir())) == 1
