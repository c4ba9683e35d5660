"""What is handed to the project beside its checkout: tests read it where it is there, and say so where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def found(path: str) -> Path | None:
    """A file or folder of the folder ``shared`` that lies beside the checkout, or beside a folder that it is in.

    :param path: the file, relative to that folder.
    :return: the file; None where there is none.
    """
    there = (folder / "shared" / path for folder in PROJECT.parents)
    return next((each for each in there if each.exists()), None)


def shared(path: str) -> Path:
    """A file of the folder ``shared`` that lies beside the checkout, or beside a folder that the checkout is in.

    :param path: the file, relative to that folder. The test that asks is skipped where there is none.
    """
    if (there := found(path)) is not None:
        return there
    pytest.skip(f"there is no ../shared/{path} beside {PROJECT}")
