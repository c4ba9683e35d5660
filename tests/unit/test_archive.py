"""The archive: the same bytes for the same content, and nothing in it that does not belong there."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest

from airflow_batchwrap.archive import Archive, build
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.steps import discover


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    folder = tmp_path / "steps"
    (folder / "data").mkdir(parents=True)
    (folder / "2_b.py").write_text("b")
    (folder / "10_c.py").write_text("c")
    (folder / "_helper.py").write_text("h")
    (folder / "data" / "table.csv").write_text("1,2")
    return folder


def names(archive: Archive) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(archive.data)).namelist()


def test_engine_and_steps_are_in_it(steps: Path) -> None:
    archive = build(steps)
    assert archive.steps == ("2_b.py", "10_c.py")
    assert archive.size == len(archive.data)
    assert archive.sha256 == hashlib.sha256(archive.data).hexdigest()
    inside = names(archive)
    assert inside == sorted(inside)
    assert {"__main__.py", "batchwrap_engine/__init__.py", "batchwrap_engine/protocol.py"} <= set(inside)
    assert [name for name in inside if name.startswith("steps/")] == [
        "steps/10_c.py",
        "steps/2_b.py",
        "steps/_helper.py",
        "steps/data/table.csv",
    ]
    assert zipfile.ZipFile(io.BytesIO(archive.data)).read("steps/data/table.csv") == b"1,2"


def test_the_same_content_gives_the_same_bytes(steps: Path, tmp_path: Path) -> None:
    first = build(steps)
    other = tmp_path / "elsewhere" / "other_name"
    for name in ("data/table.csv", "_helper.py", "10_c.py", "2_b.py"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((steps / name).read_bytes())
        os.utime(other / name, (1, 1))
        (other / name).chmod(0o600)
    for name in (".airflowignore", ".git/config", "__pycache__/x.py", "data/__pycache__/y.pyc", "old.pyc"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).touch()
    assert build(discover(other)) == first
    (other / "data" / "table.csv").write_text("1,3")
    assert build(other).sha256 != first.sha256


def test_a_script_stays_executable(steps: Path) -> None:
    before = build(steps)
    (steps / "data" / "table.csv").chmod(0o755)
    assert build(steps).sha256 != before.sha256


def test_a_link_that_stays_inside_becomes_its_content(steps: Path) -> None:
    (steps / "3_link.py").symlink_to("2_b.py")
    archive = build(steps)
    assert zipfile.ZipFile(io.BytesIO(archive.data)).read("steps/3_link.py") == b"b"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/etc/passwd", "leads out of the steps folder"),
        ("gone", "cannot be read"),
        ("link", "cannot be read"),  # leads to itself
        ("data", "link to a folder"),
    ],
)
def test_links_that_are_refused(steps: Path, target: str, said: str) -> None:
    (steps / "link").symlink_to(target)
    with pytest.raises(ConfigError, match=said) as caught:
        build(steps)
    assert str(steps / "link") in str(caught.value)


def test_what_is_no_file_is_refused(steps: Path) -> None:
    os.mkfifo(steps / "pipe")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        build(steps)


def test_a_large_folder_belongs_to_the_inputs(steps: Path) -> None:
    (steps / "zzz.bin").write_bytes(b"x" * 1000)
    assert build(steps, size_limit=1006)
    with pytest.raises(ConfigError, match=r"1006 bytes, more than the 1005 .*zzz\.bin, 1000 bytes.* inputs="):
        build(steps, size_limit=1005)
