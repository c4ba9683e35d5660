"""`make pythons`: the whole of `make test` on every Python that is supported, and where another Python is found."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
#: Below it each Python has an environment and a log of its own: `3.12/` and `3.12.log`.
PLACE = Path(".pythons")


def find(version: str) -> str | None:
    """Find a Python: on PATH, or among those that pyenv or uv keep in their usual places.

    :param version: as in `3.12`.
    :return: the path of its interpreter, or None.
    """
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions"
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python"))
    kept = [*pyenv.glob(f"{version}.*"), *uv.glob(f"cpython-{version}.*")]
    probe = ["-c", f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"]
    for candidate in (shutil.which(f"python{version}"), *(str(path / "bin/python") for path in kept)):
        # pyenv's own stand-in on PATH is there for every version, and works for the chosen one only.
        if not candidate or not Path(candidate).exists():
            continue
        if subprocess.run([candidate, *probe], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@dataclass(frozen=True)
class Ran:
    """What `make test` came to on one Python."""

    version: str
    said: str
    passed: bool = False
    failures: tuple[str, ...] = ()
    packages: frozenset[str] = frozenset()


def run(version: str) -> Ran:
    """Run `make test` on a Python, in an environment of its own; its output goes to the screen and into a log.

    Make hands on what it was given itself, such as `ARGS=...`.

    :param version: as in `3.12`.
    """
    python = find(version)
    if python is None:
        remedy = f"install it, for instance with: uv python install {version}"
        return Ran(version, f"not run: no python{version} on PATH, in pyenv or in uv; {remedy}")
    venv, log = PLACE / version, PLACE / f"{version}.log"
    PLACE.mkdir(exist_ok=True)
    began, lines = time.monotonic(), []
    command = ["make", "test", f"VENV={venv}", f"PYTHON={python}"]
    with (
        log.open("w") as kept,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            kept.write(line)
            lines.append(line)
    passed, took = child.wait() == 0, f"{time.monotonic() - began:.0f} s"
    summary = [line.strip("= \n") for line in lines if re.match(r"=* ?\d+ (passed|failed|error|skipped)", line)]
    said = summary[-1] if summary else f"make test ended with {child.returncode} before any test: see {log}"
    failures = tuple(line.split(" - ")[0].strip() for line in lines if line.startswith(("FAILED ", "ERROR ")))
    found = importlib.metadata.distributions(path=[str(venv / f"lib/python{version}/site-packages")])
    packages = frozenset(f"{one.name}=={one.version}" for one in found)
    return Ran(version, f"{said}; {took} in all", passed, failures, packages)


def report(ran: list[Ran]) -> str:
    """Tell in a few lines what each Python came to, and what it adds to those before it."""
    lines: list[str] = []
    failed: set[str] = set()
    before: frozenset[str] = frozenset()
    for one in ran:
        lines.append(f"Python {one.version}: {one.said}")
        lines += [f"    {failure}" for failure in one.failures if failure not in failed]
        if more := sorted(one.packages - before) if before else []:
            lines.append(f"    other packages: {', '.join(more)}")
        failed |= set(one.failures)
        before |= one.packages
    return "\n".join(lines)


def main(versions: list[str]) -> int:
    """Run all of them, one after the other, and tell."""
    ran = []
    for version in versions:
        print(f"\n=== Python {version}", flush=True)
        ran.append(run(version))
    print(f"\n{report(ran)}", flush=True)
    return 0 if all(one.passed for one in ran) else 1


if __name__ == "__main__":
    os.chdir(PROJECT)
    sys.exit(main(sys.argv[1:]))
