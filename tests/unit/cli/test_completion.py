"""Scripts that complete the command line, run by the shell they are for."""

import shutil
import subprocess
import sys

import pytest

from oseg_video.cli import main

COMPLETE = """
. ./script
f=$(complete -p oseg-video | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=(oseg-video $@) COMP_CWORD=$#
$f oseg-video
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(capsys):
    def printed(shell):
        with pytest.raises(SystemExit) as done:
            main(["--print-completion", shell])
        assert done.value.code == 0
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ev", {"evaluate"}),
        ("generate --guidance-s", {"--guidance-scale", "--guidance-scale-2"}),
        ("vbench s", {"setup"}),
        ("info a-", {"a-clip.mp4"}),
        ("generate --config a-", {"a-clip.mp4"}),
    ],
)
def test_bash_completes_commands_flags_and_files(script, tmp_path, words, expected):
    (tmp_path / "a-clip.mp4").touch()
    (tmp_path / "script").write_text(script("bash"))
    call = ["bash", "--norc", "-c", COMPLETE, "complete", *words.split()]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected, done.stderr


def test_zsh_has_a_script_of_its_own(script, tmp_path):
    text = script("zsh")
    assert text.startswith("#compdef oseg-video") and "--guidance-scale" in text
    if shutil.which("zsh"):
        (tmp_path / "script").write_text(text)
        subprocess.run(["zsh", "-n", "script"], cwd=tmp_path, check=True)


def test_another_shell_is_refused(capsys):
    assert main(["--print-completion", "fish"]) == 2
    assert "invalid choice: 'fish' (choose from" in capsys.readouterr().err


def test_the_library_is_imported_when_it_is_used():
    code = "import sys, oseg_video.cli as cli; cli.parse(['env']); print('shtab' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
