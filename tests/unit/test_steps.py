"""Step discovery: names in, ordered stages out, and a plain word for every folder that is no workflow."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.steps import discover, driver_arguments


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_numbers_order_the_steps_and_equal_numbers_share_a_stage(tmp_path: Path) -> None:
    names = ["10_c.py", "2_b.py", "2_a.py", "01_x.py", "3.py", "7-late.step.py"]
    found = discover(fill(tmp_path, *names))
    assert found.path == tmp_path
    assert [(stage.number, [step.file for step in stage.steps]) for stage in found.stages] == [
        (1, ["01_x.py"]),
        (2, ["2_a.py", "2_b.py"]),
        (3, ["3.py"]),
        (7, ["7-late.step.py"]),
        (10, ["10_c.py"]),
    ]
    assert [step.name for step in found.steps] == ["01_x", "2_a", "2_b", "3", "7-late.step", "10_c"]
    assert [step.number for step in found.steps] == [1, 2, 2, 3, 7, 10]


def test_helpers_are_no_steps(tmp_path: Path) -> None:
    fill(
        tmp_path, "1_a.py", "helper.py", "_private.py", ".2_hidden.py", "data.csv", "_3_data.csv", "tool.sh", "app.jar"
    )
    fill(tmp_path, "5_folder.py/inside.py", "sub/6_y.py", "__pycache__/4_x.py", "1_a.py~", "2_b.pyc")
    assert [step.file for step in discover(str(tmp_path)).steps] == ["1_a.py"]


def test_one_file_without_a_number_is_a_workflow(tmp_path: Path) -> None:
    (stage,) = discover(fill(tmp_path, "only.py", "_helper.py", "note.txt")).stages
    assert (stage.number, [(step.name, step.number) for step in stage.steps]) == (None, [("only", None)])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "holds no step file: add one such as 1_hello.py"),
        (["_a.py", "x.txt"], "holds no step file"),
        (["b.py", "a.py"], "have no order: a.py, b.py"),
        (["1_a b.py"], "'1_a b.py'"),
        (["1_a$.py"], "cannot be an Airflow task id"),
        (["1" * 251 + ".py"], "251 characters"),
        (["1_a.py", "1_A.py"], "1_A.py and 1_a.py"),
        (["1_a.py", "1_a.sh"], "1_a.py and 1_a.sh"),
        (["b.sh", "a.jl"], "have no order: a.jl, b.sh"),
        (["1_a.py", "2_data.csv", "3_notes"], "2_data.csv begins with a number, as a step does, and is none"),
        (["1_a.py", "2_data.csv", "3_notes"], "3_notes begins with a number"),
        (["1_a.jar"], "1_a.jar is no jar"),
    ],
)
def test_a_folder_that_is_no_workflow(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        discover(fill(tmp_path, *names))
    assert str(tmp_path) in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no steps folder"):
        discover(tmp_path / "gone")
    with pytest.raises(ConfigError, match="is a file"):
        discover(fill(tmp_path, "1_a.py") / "1_a.py")


ELF = b"\x7fELF\x02\x01\x01"


@pytest.mark.parametrize(
    ("name", "data", "mode", "language"),
    [
        ("3_render.sh", b"echo hello\n", 0o644, "bash"),
        ("5_model.R", b"", 0o644, "Rscript"),
        ("5_model.r", b"", 0o644, "Rscript"),
        ("6_fit.jl", b"", 0o644, "julia"),
        ("7_tool", b"#!/bin/sh\n", 0o755, "program"),
        ("7_tool", b"#!/bin/sh\n", 0o700, "program"),
        ("7_tool.pl", b"#!/usr/bin/env perl\n", 0o755, "program"),
        ("7_tool", ELF, 0o755, "program"),
    ],
)
def test_steps_in_other_languages(tmp_path: Path, name: str, data: bytes, mode: int, language: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / name).chmod(mode)
    (found,) = discover(tmp_path).steps
    assert (found.name, found.file, found.language) == (name.partition(".")[0], name, language)


def test_a_jar_is_known_by_its_end_as_it_may_begin_with_a_script(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "4_pi.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Main-Class: Pi\n")
    (tmp_path / "4_pi.jar").write_bytes(b"#!/bin/sh\n" + (tmp_path / "4_pi.jar").read_bytes())
    (found,) = discover(tmp_path).steps
    assert (found.name, found.language) == ("4_pi", "java")


@pytest.mark.parametrize(
    ("name", "data", "mode", "said"),
    [
        ("3_a.sh", b"#!/bin/bash\r\necho\r\n", 0o644, "3_a.sh has Windows line ends (CRLF)"),
        ("7_tool", b"#!/bin/sh\r\n", 0o755, "dos2unix"),
        ("7_tool", b"#!/bin/sh\n", 0o644, "7_tool is a program that may not be executed: chmod +x"),
        ("7_tool", ELF, 0o655, "chmod +x"),  # others may execute it, its owner may not
        ("7_tool", b"", 0o755, "write the line '#!/bin/sh' first"),
        ("7_data.csv", b"a,b\n", 0o755, "a file that is no step has a name without a number"),
        ("7_data.csv", b"a,b\n", 0o644, "ends in .py, .sh, .jar, .R or .jl, or is executable (chmod +x)"),
        ("4_pi.jar", b"version https://git-lfs.github.com/spec/v1\n", 0o644, "git lfs pull"),
    ],
)
def test_a_file_with_a_number_that_nothing_could_run(
    tmp_path: Path, name: str, data: bytes, mode: int, said: str
) -> None:
    fill(tmp_path, "1_a.py")
    (tmp_path / name).write_bytes(data)
    (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        discover(tmp_path)
    assert name in str(caught.value)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    fill(tmp_path, "1_a.py")
    os.mkfifo(tmp_path / "2_pipe")  # to open it would wait for ever
    with pytest.raises(ConfigError, match="2_pipe is neither a file nor a folder"):
        discover(tmp_path)
    (tmp_path / "2_pipe").unlink()
    (tmp_path / "2_gone.sh").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"2_gone\.sh cannot be read"):
        discover(tmp_path)


@pytest.mark.as_user
def test_a_program_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    fill(tmp_path, "1_a.sh").joinpath("1_a.sh").chmod(0o300)
    with pytest.raises(ConfigError, match=r"1_a\.sh cannot be read: Permission denied"):
        discover(tmp_path)


def test_one_program_without_a_number_is_a_workflow(tmp_path: Path) -> None:
    (found,) = discover(fill(tmp_path, "only.sh", "data.csv")).steps
    assert (found.name, found.number, found.language) == ("only", None, "bash")
    (found,) = discover(fill(tmp_path, "only.py")).steps  # as it was before there were others
    assert (found.file, found.language) == ("only.py", "python")


@given(st.lists(st.tuples(st.integers(0, 10**12), st.text("abz_", max_size=3)), min_size=1, max_size=12, unique=True))
def test_order_is_numeric_then_by_name(tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[int, str]]) -> None:
    folder = tmp_path_factory.mktemp("steps")
    found = discover(fill(folder, *[f"{number}_{name}.py" for number, name in keys]))
    assert [step.file for step in found.steps] == [f"{number}_{name}.py" for number, name in sorted(keys)]
    numbers = [stage.number for stage in found.stages]
    assert numbers == sorted({number for number, _ in keys})


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (None, []),
        ("", []),
        ("input.txt 2 34", ["input.txt", "2", "34"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        (["input.txt", 2, {"x": None}], ["input.txt", 2, {"x": None}]),
        (("a b",), ["a b"]),
    ],
)
def test_driver_arguments(args: Any, expected: list[Any]) -> None:
    assert driver_arguments(args) == expected


@pytest.mark.parametrize(("args", "said"), [("it's", "close the quote"), (3, "args is a int"), ({"a": 1}, "is a dict")])
def test_driver_arguments_that_cannot_be(args: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        driver_arguments(args)
