"""The workspace crosses XCom whole, and tells when it is something else."""

from __future__ import annotations

import json

import pytest

from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.workspace import BlobRef, InputFile, ValueReference, Workspace


def test_a_workspace_survives_json() -> None:
    ref = BlobRef("c", "b", 3, "00")
    whole = Workspace("p", True, "j", 2, ref, ("1_a.py",), (InputFile("x", ref),), "$D/inputs", "out", "run/x")
    assert Workspace.from_xcom(json.loads(json.dumps(whole.to_xcom()))) == whole


@pytest.mark.parametrize("data", [None, {}, [], "x", {"pool_id": "p"}])
def test_something_else_is_told(data: object) -> None:
    with pytest.raises(ConfigError, match="workspace"):
        Workspace.from_xcom(data)


def test_a_reference_is_told_from_a_value() -> None:
    reference = ValueReference(BlobRef("c", "b", 3, "00"))
    assert ValueReference.from_xcom(json.loads(json.dumps(reference.to_xcom()))) == reference
    for value in (None, 3, [1], {"container": "c"}, {**reference.to_xcom(), "more": 1}):
        assert ValueReference.from_xcom(value) is None
