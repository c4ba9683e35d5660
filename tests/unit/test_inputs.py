"""Input files are gathered by name, and only those that are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.inputs import collect


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/b.txt").write_text("b")
    (tmp_path / "in/deep/a.txt").write_text("a")
    (tmp_path / "in/.env").write_text("secret")
    assert [name for name, _ in collect("in", tmp_path)] == ["b.txt", "deep/a.txt"]


def test_a_file_is_called_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.txt").write_text("b")
    assert collect(["in/b.txt", tmp_path / "in/b.txt"], tmp_path) == [("b.txt", tmp_path / "in/b.txt")]


def test_a_missing_input_is_told_with_the_place_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file or folder") as error:
        collect("gone", tmp_path)
    assert str(tmp_path / "gone") in str(error.value)


def test_two_files_of_one_name_are_told(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text(folder)
    with pytest.raises(ConfigError, match="Two inputs are called 'x'"):
        collect(["one", "two"], tmp_path)


def test_a_link_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "in/x").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="symbolic link"):
        collect("in", tmp_path)


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="no regular file"):
        collect("in", tmp_path)


def test_a_link_to_a_folder_is_not_left_out_in_silence(tmp_path: Path) -> None:
    (tmp_path / "in/real").mkdir(parents=True)
    (tmp_path / "in/real/x").write_text("x")
    (tmp_path / "in/linked").symlink_to("real")
    with pytest.raises(ConfigError, match="link to a folder"):
        collect("in", tmp_path)


@pytest.mark.parametrize("name", ["back\\slash", "new\nline", "not\udcff-utf8"])
def test_a_name_that_no_blob_can_have_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match="no blob can have"):
        collect(tmp_path / name, tmp_path)
