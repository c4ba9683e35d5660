"""Where the stack keeps what it installs and what it runs."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

# In a checkout this is the project's folder; in an installed package it is site-packages, which has no pyproject.toml.
_PROJECT = Path(__file__).resolve().parents[2]


def project_dir() -> Path | None:
    """The checkout this package runs from.

    :return: its folder, or None where the package was installed as a copy.
    """
    return _PROJECT if (_PROJECT / "pyproject.toml").is_file() and os.access(_PROJECT, os.W_OK) else None


def cache_dir() -> Path:
    """The folder for what is downloaded or prepared once and used by every run.

    :return: ``$BATCHWRAP_CACHE``; else ``.cache`` of the checkout; else the user's cache folder. It may not exist yet.
    """
    chosen = os.environ.get("BATCHWRAP_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    project = project_dir()
    if project is not None:
        return project / ".cache"
    return platformdirs.user_cache_path("batchwrap", appauthor=False)
