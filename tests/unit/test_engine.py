"""The engine as a node runs it: an archive, started as a process of its own, by the oldest Python too."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airflow_batchwrap import archive
from airflow_batchwrap.engine import protocol

DEADLINE = 30.0  # seconds that any one process here may take


@dataclass
class Ended:
    """What one run left."""

    exit_code: int
    stdout: str
    stderr: str
    work: Path

    @property
    def out(self) -> Path:
        return self.work / protocol.OUT_DIR

    @property
    def result(self) -> protocol.Result:
        return protocol.Result.loads((self.out / protocol.RESULT_FILE).read_text())

    @property
    def error(self) -> protocol.StepError:
        error = self.result.error
        assert error is not None
        return error


@dataclass
class Node:
    """A working directory with the archive of some steps in it."""

    python: str
    base: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.base / "wd"

    def write(self, name: str, text: str) -> None:
        path = self.base / "steps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")

    def start(self, call: protocol.Call | str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        self.work.mkdir(exist_ok=True)
        (self.work / protocol.ARCHIVE_NAME).write_bytes(archive.build(self.base / "steps").data)
        text = call if isinstance(call, str) else call.dumps()
        env = {**os.environ, protocol.CALL_ENV: text, **self.env}
        return subprocess.Popen(
            [self.python, protocol.ARCHIVE_NAME],
            cwd=self.work,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
        )

    def run(self, call: protocol.Call | str) -> Ended:
        process = self.start(call)
        out, err = process.communicate(timeout=DEADLINE)
        return Ended(process.returncode, out.decode(), err.decode(), self.work)

    def step(self, source: str, *arguments: Any, **call: Any) -> Ended:
        """Run one step file, ``1_step.py``, with these values as its arguments."""
        self.write("1_step.py", source)
        values = [protocol.Argument("value", value=value) for value in arguments]
        return self.run(protocol.Call("1_step.py", values, **call))


@pytest.fixture(params=["this Python", "Python 3.8"])
def node(request: pytest.FixtureRequest, tmp_path: Path, find_python: Callable[[str], str | None]) -> Node:
    python: str | None = sys.executable
    if request.param == "Python 3.8":
        # The oldest that a node may have.
        python = find_python("3.8")
        if python is None:
            pytest.skip("no Python 3.8 on PATH, in pyenv or in uv")
    assert python is not None
    return Node(python, tmp_path)


@pytest.fixture
def here(tmp_path: Path) -> Node:
    """The same with this Python only, for what no version of Python changes."""
    return Node(sys.executable, tmp_path)


# What a step gets and gives


def test_a_step_gets_its_arguments_and_its_value_is_recorded(node: Node) -> None:
    node.write("_helper.py", "def add(a, b):\n    return a + b\n")
    ended = node.step(
        """
        import _helper
        def do_action(engine, *args):
            print("args", args, "and é")
            return {"sum": _helper.add(*args), "pair": (1, 2)}
        """,
        2,
        3,
    )
    assert (ended.exit_code, ended.stdout) == (0, "args (2, 3) and é\n")
    assert ended.result.outcome == protocol.DONE
    assert ended.result.value == {"sum": 5, "pair": [1, 2]}
    assert ended.result.started < ended.result.ended
    assert not list(ended.out.glob("*.part"))


def test_what_a_step_can_ask_for(here: Node) -> None:
    ended = here.step(
        """
        def do_action(engine):
            engine.log.info("a line for the log")
            return [engine.params, engine.context, engine.output_container, str(engine.input_dir)]
        """,
        params={"day": 3},
        context={"dag_id": "d", "attempt": 2},
        output_container="results",
    )
    assert ended.result.value == [{"day": 3}, {"dag_id": "d", "attempt": 2}, "results", str(here.work)]
    assert "INFO a line for the log" in ended.stderr
    assert "step 1_step.py, attempt 2, Python 3." in ended.stderr
    assert ended.stdout == ""


def test_print_is_seen_at_once_and_in_utf_8_whatever_the_locale(node: Node) -> None:
    node.env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    node.write(
        "1_step.py",
        """
        import sys
        def do_action(engine):
            print("\u00fcber", end="")
            while not open("go").read():
                pass
        """,
    )
    node.work.mkdir()
    (node.work / "go").write_text("")
    process = node.start(protocol.Call("1_step.py"))
    assert process.stdout is not None
    try:
        assert process.stdout.read(5) == "\u00fcber".encode()  # the step has not ended: it waits for the word
        assert process.poll() is None
        (node.work / "go").write_text("go")
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_processes_of_a_step_find_its_functions(node: Node) -> None:
    ended = node.step(
        """
        import multiprocessing
        def square(x):
            return x * x
        def do_action(engine):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.map(square, [1, 2, 3])
        """
    )
    assert ended.result.value == [1, 4, 9], ended.stderr


def test_a_large_value_gets_its_own_file_and_comes_back_as_an_argument(node: Node) -> None:
    first = node.step("def do_action(engine):\n    return ['\u00e9' * 20000]")
    described = first.result.value_file
    assert described is not None
    assert first.result.value is None
    data = (first.out / described.path).read_bytes()
    assert (described.size, described.sha256) == (len(data), hashlib.sha256(data).hexdigest())

    folder = node.work / protocol.ARGUMENTS_DIR
    folder.mkdir()
    (folder / "0.json").write_bytes(data)
    sent = protocol.Argument("file", path=f"{folder.name}/0.json", size=described.size, sha256=described.sha256)
    node.write("2_next.py", "def do_action(engine, both):\n    return [len(both[0][0]), both[1]]")
    second = node.run(
        protocol.Call("2_next.py", [protocol.Argument("list", items=[sent, protocol.Argument("value", value=7)])])
    )
    assert second.result.value == [20000, 7]

    (folder / "0.json").write_bytes(data.replace(b"u00e9", b"u00e8"))
    changed = node.run(protocol.Call("2_next.py", [sent]))
    assert changed.exit_code == protocol.EXIT_UNUSABLE
    assert "is not what was sent" in changed.error.message


def test_values_that_came_by_a_prefix_are_found_below_their_whole_names(here: Node) -> None:
    folder = here.work / protocol.ARGUMENTS_DIR / "sets/abc"
    folder.mkdir(parents=True)
    sent = []
    for number in range(3):
        data = json.dumps([number]).encode()
        (folder / f"{number}.json").write_bytes(data)
        path = f"{protocol.ARGUMENTS_DIR}/sets/abc/{number}.json"
        digest = hashlib.sha256(data).hexdigest()
        sent.append(protocol.Argument("file", path=path, size=len(data), sha256=digest))
    here.write("1_step.py", "def do_action(engine, got):\n    return got\n")
    call = protocol.Call("1_step.py", [protocol.Argument("list", items=sent)])
    assert here.run(call).result.value == [[0], [1], [2]]
    (folder / "1.json").unlink()  # a prefix that matches too few blobs is no error to Batch
    ended = here.run(call)
    assert ended.exit_code == protocol.EXIT_UNUSABLE
    assert "did not arrive" in ended.error.message


# What only the Batch task may read


SHOW = """
    import os, subprocess
    def do_action(engine):
        child = subprocess.run(["/bin/sh", "-c", 'printf %s "$TOKEN"'], capture_output=True, check=True)
        return [os.environ["TOKEN"][::-1], child.stdout.decode()[::-1], engine.params["p"][::-1], engine.params["q"]]
"""


def test_secrets_reach_the_step_and_what_it_starts_and_nobody_else(node: Node) -> None:
    secret = protocol.Secrets({"TOKEN": "HUSH\n'é"}, {"p": "QUIET"})
    node.work.mkdir()
    (node.work / protocol.SECRETS_FILE).write_text(secret.dumps())
    for _ in range(2):  # Batch may run it again where it is, and brings its files only once
        ended = node.step(SHOW, params={"q": 1}, secrets_file=protocol.SECRETS_FILE)
        assert ended.result.value == ["é'\nHSUH", "é'\nHSUH", "TEIUQ", 1], ended.stderr
    for told in (ended.stdout, ended.stderr, (ended.out / protocol.RESULT_FILE).read_text(), repr(secret)):
        assert "HUSH" not in told
        assert "QUIET" not in told


def test_the_file_of_secrets_is_no_result(here: Node) -> None:
    here.work.mkdir()
    (here.work / protocol.SECRETS_FILE).write_text(protocol.Secrets({"TOKEN": "HUSH"}).dumps())
    ended = here.step(
        f"def do_action(engine):\n    engine.add_file_to_upload({protocol.SECRETS_FILE!r})\n",
        secrets_file=protocol.SECRETS_FILE,
    )
    assert "the engine's own" in ended.error.message
    ended = here.step(
        "def do_action(engine):\n    engine.add_file_to_upload('.')\n", secrets_file=protocol.SECRETS_FILE
    )
    assert [file for file in ended.result.files if "secret" in file.path] == []


@pytest.mark.parametrize(
    "text", [None, "HUSH", '{"protocol": 1, "HUSH": "x"}', '{"protocol": 9, "environment": "HUSH"}']
)
def test_a_file_of_secrets_that_is_none_is_told_without_a_value(here: Node, text: str | None) -> None:
    here.work.mkdir()
    if text is not None:
        (here.work / protocol.SECRETS_FILE).write_text(text)
    ended = here.step("def do_action(engine): pass", secrets_file=protocol.SECRETS_FILE)
    assert ended.exit_code == protocol.EXIT_ENGINE_FAILED
    assert "secrets file" in ended.error.message
    assert '"x"' not in ended.error.message


def test_a_call_without_secrets_is_one_that_older_engines_read() -> None:
    assert "secrets" not in protocol.Call("1_step.py").dumps()
    sent = protocol.Call("1_step.py", secrets_file="s")
    assert protocol.Call.loads(sent.dumps()) == sent


@pytest.mark.parametrize("value", ["2**70", "'a\\0b'", "os.fsdecode(b'caf\\xe9')"])
def test_a_value_that_no_xcom_can_hold_gets_its_own_file(node: Node, value: str) -> None:
    ended = node.step(f"import os\n\ndef do_action(engine):\n    return [{value}]")
    assert ended.exit_code == 0, ended.stderr
    assert ended.result.value is None
    assert ended.result.value_file is not None
    kept = json.loads((ended.out / ended.result.value_file.path).read_bytes())
    assert kept in ([2**70], ["a\0b"], ["caf\udce9"])


@pytest.mark.parametrize("code", ["", "0"])
def test_sys_exit_with_success_is_a_normal_end(here: Node, code: str) -> None:
    ended = here.step(f"import sys\ndef do_action(engine):\n    sys.exit({code})")
    assert (ended.exit_code, ended.result.value) == (0, None)


# A step that fails


def test_the_traceback_shows_the_users_lines_and_no_others(node: Node) -> None:
    ended = node.step(
        """
        def inner():
            return 1 / 0  # the line at fault
        def do_action(engine):
            try:
                inner()
            except ZeroDivisionError as error:
                raise ValueError("no such day") from error
        """
    )
    assert (ended.exit_code, ended.result.outcome) == (1, protocol.STEP_RAISED)
    assert (ended.error.type, ended.error.message) == ("ValueError", "no such day")
    assert "return 1 / 0  # the line at fault" in ended.error.traceback
    assert "batchwrap_engine" not in ended.stderr
    assert ended.error.traceback in ended.stderr


@pytest.mark.parametrize(
    ("raised", "name"),
    [
        ("sys.exit(5)", "SystemExit"),
        ("sys.exit('no data')", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise MemoryError", "MemoryError"),
        ("bytearray(2 ** 62)", "MemoryError"),
        ("raise Silent", "Silent"),
        ("do_action(engine)", "RecursionError"),
        ("engine.run('false')", "CommandFailed"),
    ],
)
def test_whatever_ends_a_step_is_recorded(here: Node, raised: str, name: str) -> None:
    ended = here.step(
        f"""
        import sys
        class Silent(BaseException):
            def __str__(self):
                raise RuntimeError("not even this")
        def do_action(engine):
            {raised}
        """
    )
    assert (ended.exit_code, ended.error.type) == (1, name)
    assert len(ended.error.traceback) <= 16 * 1024
    assert "batchwrap_engine/" not in ended.error.traceback


def test_a_long_traceback_keeps_its_beginning_and_its_end(here: Node) -> None:
    ended = here.step("def do_action(engine):\n    raise ValueError('x' * 100_000 + ' the end')")
    assert len(ended.error.traceback) <= 16 * 1024
    assert ended.error.traceback.startswith("Traceback")
    assert ended.error.traceback.endswith(" the end\n")


def test_sigterm_ends_a_long_computation_promptly(here: Node) -> None:
    here.write("1_step.py", "def do_action(engine):\n    print('running')\n    sum(range(10 ** 12))\n")
    process = here.start(protocol.Call("1_step.py"))
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("moment", ["while it starts", "while it runs"])
def test_sigterm_ends_what_the_step_runs(here: Node, moment: str) -> None:
    # The program holds the write end of a pipe: reading it ends when the program does.
    read, write = os.pipe()
    os.set_inheritable(write, True)
    early = "signal.raise_signal(signal.SIGTERM)" if moment == "while it starts" else "pass"
    here.write(
        "1_step.py",
        f"""
        import signal, subprocess
        started = subprocess.Popen.__init__
        def start(self, *args, **more):
            started(self, *args, close_fds=False, **more)
            {early}
        subprocess.Popen.__init__ = start
        def do_action(engine):
            engine.run(["sh", "-c", "echo up; exec sleep 600"])
        """,
    )
    process = here.start(protocol.Call("1_step.py"), pass_fds=[write])
    os.close(write)
    assert process.stdout is not None
    try:
        if moment == "while it runs":
            assert process.stdout.readline() == b"up\n"
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == -signal.SIGTERM
        assert select.select([read], [], [], 5)[0] == [read], "the program outlived the step"
        assert os.read(read, 1) == b""
    finally:
        os.close(read)
        process.kill()
        process.communicate()


# A step that cannot be used


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "has no do_action: write"),
        ("do_action = 3", "is a int, not a function"),
        ("def do_action(engine)\n    pass", "SyntaxError"),
        ("import not_there_at_all", "'not_there_at_all'"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("import sys\nsys.exit()", "cannot be imported: SystemExit"),
        ("async def do_action(engine): pass", "async function"),
        ("def do_action(): pass", "do_action()"),
        ("def do_action(engine, a, b): pass", "cannot take the arguments it is given (the engine alone)"),
        ("def do_action(engine): return {1: 2}", "the key 1 of type `int`"),
        ("def do_action(engine): return float('nan')", "value is nan"),
        ("import datetime\ndef do_action(engine): return {'a': [datetime.date.today()]}", "value['a'][0] is a `date`"),
    ],
)
def test_an_unusable_step_is_told_what_to_write(node: Node, source: str, said: str) -> None:
    ended = node.step(source)
    assert (ended.exit_code, ended.result.outcome) == (2, protocol.UNUSABLE)
    assert said in ended.error.message
    assert "1_step.py" in ended.error.message
    assert said in ended.stderr
    assert "batchwrap_engine" not in ended.stderr


def test_a_type_error_inside_the_step_is_the_steps_own(here: Node) -> None:
    ended = here.step("def do_action(engine, *args):\n    len()")
    assert (ended.exit_code, ended.error.type) == (1, "TypeError")


def test_the_line_of_a_syntax_error_is_shown(here: Node) -> None:
    ended = here.step("def do_action(engine):\n    return (1")
    assert "return (1" in ended.error.traceback
    assert "1_step.py" in ended.stderr


def test_a_step_that_the_archive_does_not_hold(here: Node) -> None:
    here.write("1_step.py", "def do_action(engine): pass")
    for name in ("2_other.py", "../1_step.py", "/etc/passwd"):
        ended = here.run(protocol.Call(name))
        assert ended.exit_code == protocol.EXIT_UNUSABLE
        assert repr(name) in ended.error.message


@pytest.mark.parametrize("call", ["{}", "nonsense", '{"protocol": 99}', '{"protocol": 1, "step": "a", "more": 1}'])
def test_a_call_that_cannot_be_read_is_the_engines_failure(here: Node, call: str) -> None:
    here.write("1_step.py", "def do_action(engine): pass")
    ended = here.run(call)
    assert (ended.exit_code, ended.result.outcome) == (3, protocol.ENGINE_FAILED)
    assert ended.error.type == "ProtocolError"


def test_a_record_that_cannot_be_written_is_the_engines_failure(here: Node) -> None:
    ended = here.step(f"def do_action(engine):\n    open('{protocol.OUT_DIR}', 'w').close()")
    assert ended.exit_code == protocol.EXIT_ENGINE_FAILED
    assert "the result record cannot be written" in ended.stderr


# Inputs


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("alpha")
    (folder / "sub" / "b.txt").write_text("beta")
    return folder


def test_inputs_are_at_hand_by_name_and_can_be_uploaded(node: Node, inputs: Path) -> None:
    node.env = {"PREPARED": str(inputs.parent)}
    source = """
        import os
        def do_action(engine):
            engine.add_file_to_upload("sub")
            engine.add_file_to_upload("a.txt")
            return [open("a.txt").read(), open("sub/b.txt").read(), (engine.input_dir / "a.txt").read_text(),
                    os.path.islink("a.txt")]
        """
    for _ in range(2):  # Batch may run it again in the same directory
        ended = node.step(source, inputs=["a.txt", "sub/b.txt"], inputs_dir="$PREPARED/inputs")
        assert ended.result.value == ["alpha", "beta", "alpha", True]
        assert [file.path for file in ended.result.files] == ["a.txt", "sub/b.txt"]
        assert (ended.out / protocol.FILES_DIR / "sub" / "b.txt").read_text() == "beta"


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("gone.txt", "../inputs", "'gone.txt' is missing from the input directory"),
        ("../steps/1_step.py", "../inputs", "holds '..'"),
        ("/etc/passwd", "../inputs", "is absolute"),
        ("batchwrap.pyz", "../inputs", "the engine uses itself"),
        ("a.txt", "$NOT_SET_HERE/x", "NOT_SET_HERE"),
        ("a.txt", "", "no input directory"),
        ("out.txt", "../inputs", "leads out of the input directory"),
        ("sub/b.txt/c", "../inputs", "'sub/b.txt/c' is missing"),
    ],
)
def test_an_input_that_cannot_be_had(here: Node, inputs: Path, name: str, folder: str, said: str) -> None:
    (inputs / "out.txt").symlink_to("/etc/passwd")
    ended = here.step("def do_action(engine): pass", inputs=[name], inputs_dir=folder)
    assert ended.exit_code == protocol.EXIT_UNUSABLE
    assert said in ended.error.message


# Files


def test_files_are_taken_as_they_are_when_the_step_ends(node: Node) -> None:
    ended = node.step(
        """
        import os
        def do_action(engine):
            open("a.txt", "w").write("early")
            engine.addFileToUpload("a.txt")
            engine.add_file_to_upload("./a.txt")
            engine.add_file_to_upload(os.path.abspath("a.txt"))
            open("a.txt", "w").write("late")
            os.makedirs("tree/.deep")
            open("tree/.deep/x", "w").write("x")
            os.chdir("tree")
            engine.add_file_to_upload(".deep")
        """
    )
    assert ended.exit_code == 0, ended.stderr
    files = {file.path: file for file in ended.result.files}
    assert list(files) == ["a.txt", "tree/.deep/x"]
    assert files["tree/.deep/x"].stored == "tree/dot.deep/x"
    stored = ended.out / protocol.FILES_DIR / files["a.txt"].stored
    assert stored.read_text() == "late"
    assert files["a.txt"].sha256 == hashlib.sha256(b"late").hexdigest()
    assert files["a.txt"].size == 4


def test_a_second_run_of_the_body_leaves_nothing_of_the_first(here: Node) -> None:
    source = """
        def do_action(engine, name):
            open(name, "w").write(name)
            engine.add_file_to_upload(name)
            return "y" * (60_000 if name == "one" else 1)
        """
    first = here.step(source, "one")
    assert (first.out / protocol.VALUE_FILE).exists()
    second = here.step(source, "two")
    assert [path.name for path in (second.out / protocol.FILES_DIR).iterdir()] == ["two"]
    assert not (second.out / protocol.VALUE_FILE).exists()


@pytest.mark.parametrize(
    ("path", "error"),
    [("gone.txt", "FileNotFoundError"), ("../../etc/passwd", "ValueError"), ("/etc/passwd", "ValueError")],
)
def test_a_bad_path_raises_on_the_line_that_chose_it(here: Node, path: str, error: str) -> None:
    ended = here.step(f"def do_action(engine):\n    engine.add_file_to_upload({path!r})")
    assert (ended.exit_code, ended.error.type) == (1, error)
    assert repr(path) in ended.error.message
    assert "line 2, in do_action" in ended.error.traceback
    assert ended.result.files == []


def test_a_file_that_is_gone_at_the_end_is_named(here: Node) -> None:
    source = "import os\ndef do_action(engine):\n    open('a', 'w').close()\n    open('b', 'w').close()\n    "
    source += "engine.add_file_to_upload('a')\n    engine.add_file_to_upload('b')\n    os.remove('a')"
    ended = here.step(source)
    assert ended.exit_code == protocol.EXIT_UNUSABLE
    assert "'a' was chosen with add_file_to_upload and is gone" in ended.error.message
    assert [file.path for file in ended.result.files] == ["b"]
