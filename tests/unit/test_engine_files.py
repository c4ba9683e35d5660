"""Chosen files: contained, without links but the engine's own, and under names that Batch's patterns see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.engine.errors import Unusable
from airflow_batchwrap.engine.files import ChosenFiles, stored_names
from airflow_batchwrap.engine.paths import relative_parts
from airflow_batchwrap.engine.protocol import ARCHIVE_NAME, OUT_DIR

COMPONENT = st.text(st.sampled_from(".dota2"), min_size=1, max_size=6).filter(lambda part: part not in (".", ".."))


@st.composite
def trees(draw: st.DrawFn) -> set[str]:
    """File names that one file system can hold: no file is another one's folder."""
    names = draw(st.sets(st.lists(COMPONENT, min_size=1, max_size=3).map("/".join), max_size=12))
    return {name for name in names if not any(other.startswith(name + "/") for other in names)}


@given(trees())
def test_stored_names_have_no_leading_dots_and_can_lie_side_by_side(names: set[str]) -> None:
    stored = stored_names(names)
    assert set(stored) == names
    assert not any(part.startswith(".") for name in stored.values() for part in name.split("/"))
    assert len(set(stored.values())) == len(names)
    assert not any(one.startswith(other + "/") for one in stored.values() for other in stored.values())
    for name, new in stored.items():
        if not any(part.startswith(".") for part in name.split("/")):
            assert new == name


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_links_are_refused_at_the_call_and_at_the_end(work: Path) -> None:
    (work / "real").mkdir()
    (work / "real" / "f").write_text("x")
    (work / "to_file").symlink_to("real/f")
    (work / "to_folder").symlink_to("real")
    (work / "out").symlink_to("/etc/passwd")
    (work / "tree").mkdir()
    (work / "tree" / "hidden").symlink_to("/etc")
    chosen = ChosenFiles(work, [], None)
    for name in ("to_file", "to_folder", "to_folder/f", "out", "tree", "."):
        with pytest.raises(ValueError, match="link"):
            chosen.add(name)
    chosen.add("real")
    (work / "real" / "g").symlink_to("/etc/passwd")
    with pytest.raises(Unusable, match="is a link"):
        chosen.stage()


def test_only_links_into_the_input_directory_are_followed(work: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "a").write_text("alpha")
    (work / "a").symlink_to(inputs / "a")
    (work / "b").symlink_to(inputs / "a")  # the step's own link
    chosen = ChosenFiles(work, ["a"], inputs)
    chosen.add("a")
    with pytest.raises(ValueError, match="'b' is a link"):
        chosen.add("b")
    assert [(file.path, file.size) for file in chosen.stage()] == [("a", 5)]
    (work / "a").unlink()
    (work / "a").symlink_to("/etc/passwd")
    with pytest.raises(Unusable, match="'a' is a link"):
        chosen.stage()


@pytest.mark.parametrize("name", ["", "..", "a/../b", "../wd/a", ARCHIVE_NAME, OUT_DIR + "/result.json", "/etc"])
def test_names_that_are_not_the_steps_own(work: Path, name: str) -> None:
    with pytest.raises(ValueError, match="add_file_to_upload"):
        ChosenFiles(work, [], None).add(name)


def test_the_whole_working_directory_leaves_the_engines_files_out(work: Path) -> None:
    for name in (ARCHIVE_NAME, "a", ".hidden/b"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).touch()
    chosen = ChosenFiles(work, [], None)
    chosen.add(work)
    first = chosen.stage()
    assert [(file.path, file.stored) for file in first] == [(".hidden/b", "dot.hidden/b"), ("a", "a")]
    assert chosen.stage() == first


def test_a_working_directory_with_two_names(work: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(work)
    (work / "a").touch()
    chosen = ChosenFiles(tmp_path / "other", [], None)
    chosen.add(tmp_path / "other" / "a")
    chosen.add("a")
    assert [file.path for file in chosen.stage()] == ["a"]


def test_what_no_blob_can_hold_is_refused(work: Path) -> None:
    os.mkfifo(work / "pipe")
    (work / "new\nline").touch()
    (work / "back\\slash").touch()
    chosen = ChosenFiles(work, [], None)
    for name in ("pipe", "new\nline", "back\\slash"):
        with pytest.raises(ValueError, match=r"neither a file nor|which no blob can have"):
            chosen.add(name)


@pytest.mark.parametrize("name", ["", "/a", "..", "a/..", "a//b", "a\0b", "."])
def test_relative_parts_refuses(name: str) -> None:
    with pytest.raises(ValueError, match=r"empty|absolute|holds"):
        relative_parts(name)


@given(st.lists(COMPONENT, min_size=1))
def test_relative_parts_of_a_contained_name_join_to_it(parts: list[str]) -> None:
    assert relative_parts("./" + "/".join(parts)) == tuple(parts)
