"""Programs that a step starts."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest

from airflow_batchwrap.engine.commands import run, split_lines
from airflow_batchwrap.engine.errors import CommandFailed

BOTH = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(int(sys.argv[1]))"


def test_output_is_returned_and_shown(capfd: pytest.CaptureFixture[str]) -> None:
    done = run([sys.executable, "-c", BOTH, "0"])
    assert (done.exit_code, done.stdout, done.stderr, done.lines) == (0, "out\n", "err\n", ["out", "err"])
    assert capfd.readouterr() == ("out\n", "err\n")
    run([sys.executable, "-c", BOTH, "0"], echo=False)
    assert capfd.readouterr() == ("", "")


def test_a_failure_carries_exit_code_and_stderr() -> None:
    with pytest.raises(CommandFailed, match="exit code 3") as caught:
        run([sys.executable, "-c", BOTH, "3"])
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (3, "out\n", "err\n")
    assert str(caught.value).endswith("\nerr")
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (str(copy), copy.exit_code, copy.stderr) == (str(caught.value), 3, "err\n")
    assert run([sys.executable, "-c", BOTH, "3"], check=False).exit_code == 3


def test_a_string_is_split_and_no_shell_sees_it() -> None:
    assert run("echo 'a b' $HOME *").lines == ["a b $HOME *"]
    with pytest.raises(ValueError, match="empty command"):
        run("")


def test_directory_environment_and_input(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getcwd(), os.environ['EXTRA'], sys.stdin.read())"
    done = run([sys.executable, "-c", program], cwd=tmp_path, env={"EXTRA": "more"}, input="ä")
    assert done.lines == [f"{tmp_path} more ä"]
    assert run(["cat"]).stdout == ""
    assert run(["true"], input=b"x" * 1_000_000).exit_code == 0


def test_a_timeout_kills_the_program() -> None:
    with pytest.raises(CommandFailed, match=r"did not end within 0\.2 s") as caught:
        run(["sleep", "600"], timeout=0.2)
    assert caught.value.exit_code == 124


def test_a_signal_is_named() -> None:
    with pytest.raises(CommandFailed, match="SIGKILL") as caught:
        run(["sh", "-c", "kill -9 $$"])
    assert caught.value.exit_code == -9


@pytest.mark.as_user
def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="no program 'not-there-at-all' on this node: install it") as caught:
        run("not-there-at-all --x")
    assert caught.value.exit_code == 127
    (tmp_path / "script").touch()
    with pytest.raises(CommandFailed, match=r"chmod \+x"):
        run([tmp_path / "script"])
    with pytest.raises(CommandFailed, match=r"the directory .* is missing"):
        run("true", cwd=tmp_path / "gone")


def test_broken_utf_8_and_large_output() -> None:
    program = "import os; os.write(1, b'\\xff'); os.write(1, b'x' * 1_000_000)"
    done = run([sys.executable, "-c", program], echo=False, env={"PATH": os.environ["PATH"]})
    assert done.stdout == "\ufffd" + "x" * 1_000_000


def test_only_a_newline_ends_a_line() -> None:
    assert split_lines("a\r\n\nb\u2028c\x0bd") == ["a", "", "b\u2028c\x0bd"]
    assert split_lines("") == []
