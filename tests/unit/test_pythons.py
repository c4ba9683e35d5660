"""Which Pythons are supported is said alike everywhere, and make refuses the others in words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import pythons

PROJECT = Path(__file__).resolve().parents[2]
SUPPORTED = ["3.11", "3.12", "3.13"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout of nothing but what make needs to choose a Python, in a path with a space in it."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, folder)
    return folder


def stand_in(place: Path, version: str, install: str = "exit 9") -> Path:
    """Write a program that answers as a Python of a version does, as far as make asks.

    :param install: what it does in place of making an environment, in the shell's words.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(
        f'#!/bin/sh\ncase "$*" in *version_info*) echo {version};; *HOLD*|*fcntl*) shift 2; exec "$@";;\n'
        f"*ensurepip*) ;; *) {install};; esac\n"
    )
    place.chmod(0o755)
    return place


def make(folder: Path, *arguments: str, programs: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run make as a person does who has these programs and the system's tools."""
    path = f"{programs}:/usr/bin:/bin" if programs else "/usr/bin:/bin"
    return subprocess.run(
        ["make", *arguments],  # noqa: S607 - whichever make there is
        cwd=folder,
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_all_places_name_the_same_pythons() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one) for one in project["classifiers"]]
    assert [one[1] for one in named if one] == SUPPORTED
    last = int(SUPPORTED[-1].partition(".")[2])
    assert project["requires-python"] == f">={SUPPORTED[0]},<3.{last + 1}"
    assert f"SUPPORTED := {' '.join(SUPPORTED)}\n" in (PROJECT / "Makefile").read_text()
    words = f"Python {', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]} (with `venv`)"
    assert words in (PROJECT / "README.md").read_text()


@pytest.mark.parametrize("version", ["3.10", "3.14", "4.0"])
def test_another_python_is_refused_in_words(folder: Path, version: str) -> None:
    python = stand_in(folder / "bin/python", version)
    done = make(folder, "demo", f"PYTHON={python}", f"VENV={folder.name}-none")
    assert done.returncode == 2
    assert f"runs on Python 3.11, 3.12, 3.13. Found: {python} is {version};" in done.stderr
    assert "uv python install 3.13" in done.stderr
    assert "make demo PYTHON=/path/to/python3.13" in done.stderr


def test_a_real_python_that_is_too_old_is_refused(folder: Path, find_python: Callable[[str], str | None]) -> None:
    python = find_python("3.10")
    if python is None:
        pytest.skip("no Python 3.10 on PATH, in pyenv or in uv")
    done = make(folder, "lint", f"PYTHON={python}")
    assert done.returncode == 2
    assert f"Found: {python} is 3.10;" in done.stderr


def test_a_newer_python3_is_passed_over(folder: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    stand_in(programs / "python3", "3.14")
    stand_in(programs / "python3.13", "3.13", install="echo 3.13 is asked to: $*; exit 9")
    done = make(folder, "demo", programs=programs)
    assert "3.13 is asked to: -m venv --clear" in done.stdout
    assert "runs on Python" not in done.stderr


def test_a_named_python_replaces_an_environment_of_another(folder: Path, tmp_path: Path) -> None:
    stand_in(folder / ".venv/bin/python", "3.11", install="exit 0")
    stamp = folder / ".venv/.installed"
    stamp.touch()
    named = stand_in(tmp_path / "other", "3.12", install="echo asked to: $*; exit 9")
    assert "asked to" not in make(folder, str(stamp.relative_to(folder))).stdout
    same = stand_in(tmp_path / "same", "3.11", install="echo asked to: $*; exit 9")
    assert "asked to" not in make(folder, ".venv/.installed", f"PYTHON={same}").stdout
    assert "asked to: -m venv --clear" in make(folder, ".venv/.installed", f"PYTHON={named}").stdout


def test_what_each_python_adds_is_told() -> None:
    ran = [
        pythons.Ran("3.11", "9 passed in 1 s; 2 s in all", True, (), frozenset({"a==1", "b==1"})),
        pythons.Ran("3.12", "1 failed, 8 passed in 1 s; 2 s in all", False, ("FAILED x",), frozenset({"a==2", "b==1"})),
        pythons.Ran(
            "3.13", "2 failed, 7 passed in 1 s; 2 s in all", False, ("FAILED x", "FAILED y"), frozenset({"b==1"})
        ),
    ]
    assert pythons.report(ran).splitlines() == [
        "Python 3.11: 9 passed in 1 s; 2 s in all",
        "Python 3.12: 1 failed, 8 passed in 1 s; 2 s in all",
        "    FAILED x",
        "    other packages: a==2",
        "Python 3.13: 2 failed, 7 passed in 1 s; 2 s in all",
        "    FAILED y",
    ]


def test_a_python_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR", "PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    assert pythons.run("3.12").said.startswith("not run: no python3.12 on PATH, in pyenv or in uv; install it")


def test_each_python_runs_in_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([f"{sys.prefix}/bin", os.environ["PATH"]]))
    Path("Makefile").write_text("test:\n\t@echo with $(VENV)\n\t@echo '== 1 failed, 2 passed in 3 s =='; exit 1\n")
    version = "{}.{}".format(*sys.version_info)
    ran = pythons.run(version)
    assert not ran.passed
    assert ran.said.startswith("1 failed, 2 passed in 3 s; ")
    assert (tmp_path / f".pythons/{version}.log").read_text().startswith(f"with .pythons/{version}\n")


@pytest.mark.parametrize(
    ("module", "kind", "raised"),
    [
        ("airflow_batchwrap.hooks.batch", DeprecationWarning, True),
        ("tests.unit.test_x", UserWarning, True),
        ("unusual_prefix_0_flow", DeprecationWarning, True),
        ("azure.batch._utils", DeprecationWarning, False),
        ("airflow.models.dag", UserWarning, False),
        ("airflow.models.dag", ResourceWarning, True),
        ("sys", pytest.PytestUnraisableExceptionWarning, True),
    ],
)
def test_warnings_of_our_own_code_are_errors(module: str, kind: type[Warning], raised: bool) -> None:
    with warnings.catch_warnings(record=True) as seen:
        try:
            warnings.warn_explicit("x", kind, "x.py", 1, module=module)
        except kind:
            assert raised
        else:
            assert [one.category for one in seen] == [kind]
            assert not raised
