"""The page on autoscale formulas says what there is, and its example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_batchwrap.local.autoscale import OPTIONS
from airflow_batchwrap.local.autoscale.functions import FUNCTIONS
from airflow_batchwrap.local.autoscale.metrics import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "autoscale.md").read_text(encoding="utf-8")


def test_the_example_prints_what_its_comments_say() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("name", sorted({*FUNCTIONS, *METHODS, *OPTIONS}))
def test_every_function_method_and_option_is_on_the_page(name: str) -> None:
    assert re.search(rf"\b{name}\b", PAGE)
