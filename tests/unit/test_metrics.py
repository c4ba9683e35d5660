"""Every metric is documented, and what is documented is there."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_batchwrap import metrics

DOCS = Path(__file__).resolve().parents[2] / "docs/observing.md"


def test_the_table_of_metrics_is_whole() -> None:
    names = {value for name, value in vars(metrics).items() if name.isupper() and isinstance(value, str)}
    assert set(re.findall(r"^\| `(batchwrap\.\w+)` ", DOCS.read_text(), re.MULTILINE)) == names
