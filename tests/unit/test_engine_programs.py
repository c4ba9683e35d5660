"""Steps that are no Python, as a node runs them: what they are given, what they leave, and how they fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_batchwrap import archive
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.engine.protocol import Argument, Call

DEADLINE = 30.0  # seconds that any one process here may take
SHOW = 'for each; do printf "<%s>" "$each"; done'


class Node:
    """A working directory, and the steps of the archive that comes there."""

    def __init__(self, base: Path) -> None:
        self.steps, self.work = base / "steps", base / "w d"
        self.steps.mkdir()
        self.work.mkdir()
        self.env: dict[str, str] = {}
        self.python = sys.executable
        self.stdout = self.stderr = ""

    def write(self, name: str, text: str) -> None:
        (self.steps / name).write_bytes(text.encode())
        (self.steps / name).chmod(0o755)

    def start(self, call: Call) -> subprocess.Popen[bytes]:
        (self.work / protocol.ARCHIVE_NAME).write_bytes(archive.build(self.steps).data)
        environment = {**os.environ, protocol.CALL_ENV: call.dumps(), **self.env}
        return subprocess.Popen(
            [self.python, protocol.ARCHIVE_NAME],
            cwd=self.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, name: str, *arguments: Any, **call: Any) -> protocol.Result:
        """Run a step to its end; return its record, once it goes with the exit code."""
        process = self.start(Call(name, [Argument("value", value=value) for value in arguments], **call))
        out, err = process.communicate(timeout=DEADLINE)
        self.stdout, self.stderr = out.decode(), err.decode()
        result = protocol.Result.loads((self.work / protocol.OUT_DIR / protocol.RESULT_FILE).read_text())
        assert process.returncode == protocol.EXIT_CODES[result.outcome]
        return result

    def shell(self, text: str, *arguments: Any, **call: Any) -> protocol.Result:
        """Run one step, ``1_step.sh``."""
        self.write("1_step.sh", text)
        return self.run("1_step.sh", *arguments, **call)

    def error(self, text: str) -> str:
        """Run a step that fails; return its error's message."""
        error = self.shell(text).error
        assert error is not None
        return error.message

    def programs(self, **texts: str) -> None:
        """Have nothing but these programs on PATH, each a shell script."""
        folder = self.work.parent / "bin"
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        self.env["PATH"] = str(folder)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# What a step is given


def test_arguments_are_words_and_json(node: Node) -> None:
    values = ["a b", 'it\'s "so"', "", "*", "-e", 7, 2.0, True, None, {"k": ["ü"]}]
    result = node.shell(SHOW + '\ncp "$BATCHWRAP_ARGS" "$BATCHWRAP_RESULT"', *values)
    assert node.stdout == '<a b><it\'s "so"><><*><-e><7><2.0><true><null><{"k":["ü"]}>'
    assert result.value == values


def test_the_oldest_python_of_a_node_runs_them_too(node: Node, find_python: Callable[[str], str | None]) -> None:
    python = find_python("3.8")
    if python is None:
        pytest.skip("no Python 3.8 on PATH, in pyenv or in uv")
    node.python = python
    result = node.shell('echo y > "$BATCHWRAP_OUTPUT/y"; cp "$BATCHWRAP_ARGS" "$BATCHWRAP_RESULT"', "a b", {"k": 1})
    assert (result.value, [file.path for file in result.files]) == (["a b", {"k": 1}], ["y"])


@pytest.mark.parametrize("value", ["x" * 200_000, ["y" * 60_000, "z" * 60_000], "a\0b", "\ud800"])
def test_what_no_command_line_can_hold_is_in_the_file_alone(node: Node, value: Any) -> None:
    (node.work / "value.json").write_text(json.dumps(value))
    argument = Argument("file", path="value.json", size=(node.work / "value.json").stat().st_size, sha256="")
    argument = Argument(**{**vars(argument), "sha256": _sha256(node.work / "value.json")})
    node.write("1_step.sh", 'echo "$# arguments"\ncp "$BATCHWRAP_ARGS" "$BATCHWRAP_RESULT"')
    process = node.start(Call("1_step.sh", [Argument("value", value="first"), argument]))
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (0, b"0 arguments\n")
    assert b"the arguments are not on the command line, as " in err
    file = node.work / protocol.EXCHANGE_DIR / "result.json"
    assert json.loads(file.read_text()) == ["first", value]


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_parameters_context_folders_and_inputs(node: Node, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.txt").write_text("alpha\n")
    node.write("lib.sh", "greet() { echo hello; }")
    result = node.shell(
        """
        . "$BATCHWRAP_STEPS/lib.sh"; greet; . "$(dirname "$0")/lib.sh"
        cat "a b.txt" "$BATCHWRAP_INPUTS/a b.txt"
        [ -z "${BATCHWRAP_CALL-}" ] && [ ! -e "$BATCHWRAP_RESULT" ] && [ -z "$(ls -A "$BATCHWRAP_OUTPUT")" ]
        printf '[%s, %s]' "$(cat "$BATCHWRAP_PARAMS")" "$(cat "$BATCHWRAP_CONTEXT")" > "$BATCHWRAP_RESULT"
        """,
        params={"day": 3},
        context={"dag_id": "d", "attempt": 2},
        inputs=["a b.txt"],
        inputs_dir=str(tmp_path / "in"),
    )
    assert node.stdout == "hello\nalpha\nalpha\n"
    assert result.value == [{"day": 3}, {"dag_id": "d", "attempt": 2}]
    assert "step 1_step.sh, attempt 2" in node.stderr


@pytest.mark.as_user
def test_secrets_reach_the_step_in_a_file_for_its_user_alone(node: Node) -> None:
    (node.work / protocol.SECRETS_FILE).write_text(protocol.Secrets({"TOKEN": "HUSH"}, {"p": "QUIET"}).dumps())
    result = node.shell(
        '[ "$TOKEN" = HUSH ]; rev < "$BATCHWRAP_PARAMS" | tr -d "\\n" | grep -q TEIUQ; cp "$BATCHWRAP_CONTEXT" '
        '"$BATCHWRAP_OUTPUT/c"',
        secrets_file=protocol.SECRETS_FILE,
    )
    assert result.outcome == protocol.DONE, node.stderr
    for path in (node.work / protocol.EXCHANGE_DIR).glob("*.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    record = (node.work / protocol.OUT_DIR / protocol.RESULT_FILE).read_text()
    for word in ("HUSH", "QUIET"):
        assert word not in node.stdout + node.stderr + record
    assert [file.path for file in result.files] == ["c"]


def test_output_is_seen_while_the_step_runs(node: Node) -> None:
    node.write("1_step.sh", "echo started; while [ ! -e go ]; do sleep 0.05; done")
    process = node.start(Call("1_step.sh"))
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"started\n"
        assert process.poll() is None
        (node.work / "go").touch()
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_sigterm_ends_the_program_with_the_engine(node: Node) -> None:
    node.write("1_step.sh", "echo $$; exec sleep 600")
    process = node.start(Call("1_step.sh"))
    assert process.stdout is not None
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=5)  # the pipe ends when the program does
        assert (process.returncode, out) == (-signal.SIGTERM, b"")
    finally:
        process.kill()
        process.communicate()


# What it leaves


def test_nothing_left_is_null_and_a_large_value_gets_a_file(node: Node) -> None:
    assert node.shell("true").value is None
    result = node.shell("printf '\"%060000d\"' 0 > $BATCHWRAP_RESULT".replace("$B", '"$B').replace("LT", 'LT"'))
    assert result.value is None
    assert result.value_file is not None
    assert result.value_file.size == 60_002


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo done > $R", "is not JSON: Expecting value: line 1 column 1 (char 0). It begins with 'done'; a text is"),
        (": > $R", "is empty, which is no JSON: write null"),
        ("echo '{\"a\": NaN}' > $R", "NaN is a number that JSON does not have"),
        ("echo 1e999 > $R", "value is inf, which JSON does not have"),
        ("printf '\\377' > $R", "is not UTF-8 (invalid start byte at byte 0)"),
        ("ln -s /etc/hostname $R", "is a link: write a plain file"),
        ("mkfifo $R", "is no plain file"),
        ("mkdir $R", "is no plain file"),
        ("truncate -s 268435457 $R", "has more than the 268435456 bytes"),
        ("printf '%0300d' 0 | tr 0 '[' > $R", "is not JSON"),
        ("{ printf '%0300d' 0 | tr 0 '['; printf '%0300d' 0 | tr 0 ']'; } > $R", "nested deeper than 200 levels"),
        ("printf '%0200000d' 0 | tr 0 '[' > $R", "nested too deeply"),
    ],
)
def test_a_result_that_is_none(node: Node, script: str, said: str) -> None:
    result = node.shell(script.replace("$R", '"$BATCHWRAP_RESULT"'))
    assert result.outcome == protocol.UNUSABLE
    assert result.error is not None
    assert said in result.error.message
    assert "what 1_step.sh left in BATCHWRAP_RESULT" in result.error.message


def test_a_result_with_a_byte_order_mark_is_json(node: Node) -> None:
    assert node.shell("printf '\\357\\273\\277[1]' > \"$BATCHWRAP_RESULT\"").value == [1]


def test_files_are_uploaded_and_a_second_run_starts_with_none(node: Node) -> None:
    text = """
    cd "$BATCHWRAP_OUTPUT"; mkdir -p sub/.deep empty batchwrap-out
    echo x > "sub/.deep/a $1.txt"; echo y > batchwrap-out/y
    """
    for turn in ("1", "2"):  # Batch may run it again where it is
        result = node.shell(text, turn)
        assert [file.path for file in result.files] == ["batchwrap-out/y", f"sub/.deep/a {turn}.txt"]
        stored = node.work / protocol.OUT_DIR / protocol.FILES_DIR / f"sub/dot.deep/a {turn}.txt"
        assert stored.read_text() == "x\n"
        assert result.files[1].size == 2


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('ln -s /etc/passwd "$BATCHWRAP_OUTPUT/a"', "'a', which is a link"),
        ('ln -s /etc "$BATCHWRAP_OUTPUT/a"', "'a', which is a link"),
        ('mkdir "$BATCHWRAP_OUTPUT/s"; mkfifo "$BATCHWRAP_OUTPUT/s/a"', "'s/a', which is neither a file nor a folder"),
        ('touch "$BATCHWRAP_OUTPUT/$(printf "a\\\\b")"', "which no blob can have"),
        ('rmdir "$BATCHWRAP_OUTPUT"; ln -s /etc "$BATCHWRAP_OUTPUT"', "was replaced by a link"),
        ('rmdir "$BATCHWRAP_OUTPUT"', "cannot be read"),
    ],
)
def test_what_cannot_be_uploaded(node: Node, script: str, said: str) -> None:
    result = node.shell(script)
    assert result.outcome == protocol.UNUSABLE
    assert result.error is not None
    assert said in result.error.message
    assert result.files == []
    # A step that failed by itself is worth more than this.
    result = node.shell(f'echo z > "$BATCHWRAP_OUTPUT/z"; {script.replace("rmdir", "rm -r")}; exit 5')
    assert result.outcome == protocol.STEP_RAISED
    assert [file.path for file in result.files] == ([] if "rmdir" in script else ["z"])
    assert "not uploaded: " in node.stderr


# How it fails


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 5", "1_step.sh ended with exit code 5"),
        ("false | cat; echo not reached", "ended with exit code 1"),
        ("false; echo not reached", "ended with exit code 1"),
        ('echo "$1 not reached"', "ended with exit code 1"),
        ("kill -9 $$", "ended with signal 9 (SIGKILL); the node may have run out of memory"),
        ("rm -r ./*; exit 6", "1_step.sh ended with exit code 6"),
        ("no-such-program-here", "exit code 127; a program that it calls is not on this node's PATH: install it with"),
    ],
)
def test_a_shell_step_stops_at_its_first_failure(node: Node, script: str, said: str) -> None:
    result = node.shell('echo to stderr >&2; echo 1 > "$BATCHWRAP_RESULT"\n' + script)
    assert result.outcome == protocol.STEP_RAISED
    assert result.error is not None
    assert result.error.type == "ProgramFailed"
    assert said in result.error.message
    assert result.value is None
    assert "to stderr\n" in node.stderr
    assert "not reached" not in node.stdout


def test_a_pipe_whose_reader_stops_early_fails_unless_told_otherwise(node: Node) -> None:
    assert "exit code 141" in node.error("yes | head -1")
    assert node.shell("{ yes || true; } | head -1").outcome == protocol.DONE


def test_line_ends_of_windows_further_down_are_named(node: Node) -> None:
    assert "Windows line ends (CRLF)" in node.error("# " + "x" * 5000 + "\nif true; then\r\n  exit 1\r\nfi\r\n")


@pytest.mark.parametrize(
    ("name", "program", "remedy"),
    [
        ("1_a.sh", "bash", "install it with the pool's start task"),
        ("1_a.R", "Rscript", "r-base-core"),
        ("1_a.jl", "julia", "/usr/local/bin"),
        ("1_a.jar", "java", "default-jre-headless"),
        ("1_a", "perl6", "or use an image that has it"),
        ("1_b", "/opt/none/perl", "or use an image that has it"),
    ],
)
def test_a_program_that_the_node_lacks(node: Node, name: str, program: str, remedy: str) -> None:
    node.programs(rev="true")
    lines = {"1_a": "#!/usr/bin/env -S perl6 -w\n", "1_b": "#!/opt/none/perl\n"}
    node.write(name, lines.get(name, ""))
    if name.endswith(".jar"):
        _empty_jar(node.steps / name)
    result = node.run(name)
    assert result.outcome == protocol.UNUSABLE
    assert result.error is not None
    assert result.error.message.startswith(f"{name} needs {program}, ")
    assert remedy in result.error.message


def _empty_jar(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("a", "")


def test_a_binary_of_another_system(node: Node) -> None:
    node.write("1_tool", "\x7fELF of nothing")
    result = node.run("1_tool")
    assert result.outcome == protocol.UNUSABLE
    assert result.error is not None
    assert "a program for another kind of system" in result.error.message


# In other languages


def test_an_executable_and_a_binary(node: Node) -> None:
    node.write("1_tool", f'#!/bin/sh\n{SHOW}; cp "$BATCHWRAP_ARGS" "$BATCHWRAP_RESULT"\n')
    assert node.run("1_tool", "a b", 1).value == ["a b", 1]
    assert node.stdout == "<a b><1>"
    echo = shutil.which("echo")
    assert echo is not None
    shutil.copy(echo, node.steps / "2_echo")
    assert node.run("2_echo", "a b", {"k": 1}).value is None
    assert node.stdout == 'a b {"k":1}\n'


@pytest.mark.parametrize(("name", "program"), [("5_model.R", "Rscript"), ("6_fit.jl", "julia")])
def test_a_stand_in_for_r_and_julia_gets_the_file_and_the_arguments(node: Node, name: str, program: str) -> None:
    node.write(name, "not read here")
    node.programs(**{program: f'{SHOW}\necho "[1]" > "$BATCHWRAP_RESULT"'})
    assert node.run(name, "a b", 2).value == [1]
    assert node.stdout == f"<{node.work / protocol.STEPS_DIR / name}><a b><2>"


def test_options_of_java(node: Node) -> None:
    _empty_jar(node.steps / "4_pi.jar")
    node.programs(java=SHOW)
    jar = node.work / protocol.STEPS_DIR / "4_pi.jar"
    node.run("4_pi.jar", "a b", java_options=["-Xmx1g", "-Dname=a b"])
    assert node.stdout == f"<-Xmx1g><-Dname=a b><-jar><{jar}><a b>"
    node.env["JAVA_OPTS"] = "-Xmx2g '-Dname=c d'"
    node.run("4_pi.jar")
    assert node.stdout == f"<-Xmx2g><-Dname=c d><-jar><{jar}>"
    node.run("4_pi.jar", java_options=["-Xmx1g"])
    assert node.stdout == f"<-Xmx1g><-jar><{jar}>"
    node.env["JAVA_OPTS"] = "it's"
    error = node.run("4_pi.jar").error
    assert error is not None
    assert "JAVA_OPTS cannot be split into words" in error.message
    assert "java_options" not in Call("1_step.py").dumps()  # an older engine reads it
