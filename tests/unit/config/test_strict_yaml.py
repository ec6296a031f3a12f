"""Recipes that others wrote: one line for every failure, and none that takes long or much memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from oseg_video.config.strict_yaml import ConfigError, load_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def load(folder: Path, text: str) -> object:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return load_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 2020-99-99", r"line 1: cannot read '2020-99-99' \(month must be in 1\.\.12\)"),
        ("b: 1\na: !!int abc", "line 2: cannot read 'abc'"),
        ("a: !!bool maybe", "line 1: cannot read 'maybe'"),
        ("a: !!float x", "line 1: cannot read 'x'"),
        ("a: !!timestamp x", "line 1: cannot read 'x'"),
        ("a: " + "9" * 5000, "line 1: cannot read '999"),
        ("a: 0x" + "f" * 5000, "line 1: the number is larger than any setting can be"),
        ("a: x\0y", "special characters are not allowed"),
        ("[" * 100_000, "values are nested more than 20 deep"),
        ("a: " + "[" * 30 + "]" * 30, "line 1: values are nested more than 20 deep"),
        (LAUGHS, "holds more than 100000 values"),
        (MERGES, "holds more than 100000 values"),
        ("a:\n" + "- x\n" * 110_000, "holds more than 100000 values"),
        ("#" * (5 << 20), "has more than 4 MiB"),
        ("a: &a [*a]", "line 1: a value contains itself"),
        ("a: &a {b: *a}", "line 1: a value contains itself"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("? [a]\n: b", r"line 1: a key must be text, got \['a'\]"),
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("b: &b {x: 1}\na:\n  <<: *b\n  <<: *b", "key '<<' is given twice"),
        ("a:\n  <<: 3", "line 2: expected a mapping"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: !!python/object/apply:os.system [x]", "line 1: could not determine a constructor"),
        ("- x", "must be a mapping of settings, got list"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    tracemalloc.start()
    with pytest.raises(ConfigError, match=rf"^r\.yaml:? ?{message}") as refused:
        load(tmp_path, text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert peak < 400 << 20


def test_anchors_and_merge_keys_are_followed_and_own_keys_win(tmp_path: Path) -> None:
    text = "base: &base {x: 1, y: 2}\nmore: &more {y: 3, z: 4}\na:\n  x: 5\n  <<: [*base, *more]\nb: *base\n"
    assert load(tmp_path, text) == {
        "base": {"x": 1, "y": 2},
        "more": {"y": 3, "z": 4},
        "a": {"x": 5, "y": 2, "z": 4},
        "b": {"x": 1, "y": 2},
    }


def test_an_empty_file_has_no_settings_and_many_are_no_matter(tmp_path: Path) -> None:
    assert load(tmp_path, "") == {} == load(tmp_path, "# only a comment\n")
    keys = {f"key{i}": i for i in range(2000)}
    assert load(tmp_path, "\ufeff" + "".join(f"{key}: {value}\n" for key, value in keys.items())) == keys


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.yaml", Path("a\0b")):
        with pytest.raises(ConfigError, match=r"^cannot read "):
            load_yaml(path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match=r"^latin\.yaml: is not UTF-8 text$"):
        load_yaml(tmp_path / "latin.yaml")
