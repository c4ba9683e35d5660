"""Step discovery: names in, ordered stages out, and a plain word for every folder that is no workflow."""

from __future__ import annotations

import re
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
    fill(tmp_path, "1_a.py", "helper.py", "_private.py", ".2_hidden.py", "data.csv", "3_data.csv", "__pycache__/4_x.py")
    fill(tmp_path, "5_folder.py/inside.py", "sub/6_y.py")
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
