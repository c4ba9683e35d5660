"""What depends on the user holds for an ordinary one too: root may read, remove and end what its owner may not.

Where root runs the tests, those marked `as_user` run once more here: as `nobody`, in a copy of the checkout whose path
has a space in it, with a umask of 077 and LANG=C, and with a home and a temporary folder that go with it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
#: There is one on every Linux, and nothing belongs to it.
USER = "nobody"
VERSION = "{}.{}".format(*sys.version_info)
PACKAGES = Path(sysconfig.get_path("purelib"))
#: What a copy of the checkout does without: it has an environment of its own, and caches are made again.
LEFT_OUT = (".git", ".venv", ".pythons", ".batchwrap", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")


@dataclass(frozen=True)
class Ordinary:
    """An ordinary user, and a folder that is theirs."""

    folder: Path
    runuser: str

    def run(
        self, *command: str | Path, cwd: Path | None = None, given: bytes = b"", timeout: float = 240
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command as this user.

        :param cwd: where; in the user's folder, if not given.
        :param given: its standard input.
        :param timeout: in seconds.
        :return: how it ended, with both its outputs as one.
        """
        return subprocess.run(
            [self.runuser, "-u", USER, "--", *command],
            cwd=cwd or self.folder,
            env={"HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp"), "LANG": "C", "PATH": os.defpath},
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=0o077,
            timeout=timeout,
            check=False,
        )

    def python(self) -> Path:
        """Make an environment that this user can run, with the packages of the one that runs this test.

        That one's interpreter may lie in root's home: another of the same version serves as well.
        """
        places = [sys.base_prefix, "/usr/local", "/usr"]
        for base in [Path(place) / "bin" / f"python{VERSION}" for place in places]:
            if self.run(base, "-m", "venv", "--without-pip", self.folder / "venv").returncode == 0:
                break
        else:
            pytest.skip(f"{USER} can run no Python {VERSION}: neither that of {sys.base_prefix} nor one below /usr")
        python = self.folder / "venv/bin/python"
        # The folders of the checkout and of root's environment come after the copy, which is the working directory
        # of the tests and has to be found by what they start elsewhere as well.
        own = self.folder / f"venv/lib/python{VERSION}/site-packages/copy.pth"
        own.write_text(f"{self.checkout}\nimport site; site.addsitedir({str(PACKAGES)!r})\n")
        own.chmod(0o644)
        if self.run(python, "-c", "import pytest, airflow, azure.batch").returncode:
            pytest.skip(f"{USER} cannot read the packages in {PACKAGES}")
        return python

    @property
    def checkout(self) -> Path:
        """Where the copy of the checkout is."""
        return self.folder / "a checkout"

    def copy(self) -> None:
        """Copy the checkout, with what is there of its downloads."""
        left_out = [f"--exclude=./{name}" for name in LEFT_OUT]
        packed = subprocess.run(
            ["tar", "-C", PROJECT, *left_out, "--exclude=__pycache__", "-cf", "-", "."],  # noqa: S607 - as is runuser
            stdout=subprocess.PIPE,
            check=True,
        )
        if self.run("mkdir", self.folder / "tmp", self.checkout).returncode:
            pytest.skip(f"{USER} cannot write in {self.folder}: give TMPDIR a folder that everybody may enter")
        done = self.run("tar", "-xf", "-", cwd=self.checkout, given=packed.stdout)
        assert done.returncode == 0, done.stdout.decode()


@pytest.fixture
def ordinary() -> Iterator[Ordinary]:
    """Return an ordinary user, where there can be one."""
    if os.getuid():
        pytest.skip("root does not run these tests: an ordinary user ran all of them already")
    # Where root is without a log-in, PATH may lack the folders of its tools.
    runuser = shutil.which("runuser", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if runuser is None:
        pytest.skip("root runs these tests, and there is no runuser to run some as an ordinary user")
    folder = Path(tempfile.mkdtemp(prefix="batchwrap-as-user-"))
    shutil.chown(folder, USER)
    yield Ordinary(folder, runuser)
    shutil.rmtree(folder)


@pytest.mark.timeout(1200)
def test_the_tests_that_depend_on_the_user(ordinary: Ordinary) -> None:
    ordinary.copy()
    python = ordinary.python()
    marked = ("-m", "as_user and not soak and not kills")
    done = ordinary.run(python, "-m", "pytest", *marked, "-p", "no:cacheprovider", cwd=ordinary.checkout, timeout=1100)
    said = done.stdout.decode()
    print(said)
    assert done.returncode == 0, said[-10000:]
    assert re.search(r"\d+ passed", said)
    assert f"rootdir: {ordinary.checkout}" in said


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_killed_scheduler_leaves_nothing_to_an_ordinary_user(ordinary: Ordinary) -> None:
    ordinary.copy()
    python = ordinary.python()
    one = "tests/integration/test_real_airflow.py::test_status_reports_a_component_that_died"
    done = ordinary.run(python, "-m", "pytest", one, "-p", "no:cacheprovider", cwd=ordinary.checkout, timeout=800)
    said = done.stdout.decode()
    assert done.returncode == 0, said[-10000:]
    assert "1 passed" in said
