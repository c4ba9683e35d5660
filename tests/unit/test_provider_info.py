"""What Airflow is told about the package is what its schema wants and what the package has."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

import airflow_batchwrap
from airflow_batchwrap.provider_info import get_provider_info

INFO = get_provider_info()
KINDS = ("hooks", "operators", "triggers")


def listed(kind: str) -> list[str]:
    return [module for group in INFO[kind] for module in group["python-modules"]]


def test_it_is_what_the_schema_of_the_installed_airflow_wants() -> None:
    # Found, not imported: importing Airflow to read one file would take seconds.
    spec = importlib.util.find_spec("airflow")
    assert spec is not None
    assert spec.origin is not None
    schema: dict[str, Any] = json.loads((Path(spec.origin).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(INFO, schema)
    assert set(INFO) - set(schema["properties"]) == set(), "the schema lets unknown keys through: a typo shows here"


def test_the_entry_point_leads_to_it_under_the_name_of_the_distribution() -> None:
    distribution = importlib.metadata.distribution("airflow-batchwrap")
    (entry,) = distribution.entry_points.select(group="apache_airflow_provider")
    assert entry.load() is get_provider_info
    assert INFO["package-name"] == distribution.metadata["Name"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_module_imports_and_has_a_class_of_its_kind(kind: str) -> None:
    bases = {"hooks": "BaseHook", "operators": "BaseOperator", "triggers": "BaseTrigger"}
    for name in listed(kind):
        module = importlib.import_module(name)
        classes = [item for _, item in inspect.getmembers(module, inspect.isclass) if item.__module__ == name]
        assert [c for c in classes if bases[kind] in [base.__name__ for base in c.__mro__]], name


def test_every_extra_link_is_listed_and_named() -> None:
    from airflow_batchwrap.links.base import StoredLink

    found = {}
    for path in INFO["extra-links"]:
        module, _, name = path.rpartition(".")
        found[path] = getattr(importlib.import_module(module), name)().name
    assert len(set(found.values())) == len(found)
    kinds = StoredLink.__subclasses__()
    assert {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds} == set(found)


def test_every_public_operator_is_in_a_listed_module() -> None:
    public = {module for name, module in airflow_batchwrap._PUBLIC.items() if name.endswith("Operator")}
    assert public - set(listed("operators")) == set()


def test_the_integrations_named_are_those_described() -> None:
    described = {item["integration-name"] for item in INFO["integrations"]}
    assert {group["integration-name"] for kind in KINDS for group in INFO[kind]} == described


def test_airflow_lists_the_provider_and_reads_its_setting(tmp_path: Path) -> None:
    # The settings of the session's own Airflow would hide the defaults.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment["AIRFLOW_HOME"] = str(tmp_path)
    airflow = Path(sys.executable).with_name("airflow")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [airflow, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    providers = json.loads(run("providers", "list", "--output", "json"))
    (ours,) = [item for item in providers if item["package_name"] == "airflow-batchwrap"]
    assert ours["version"] == airflow_batchwrap.__version__
    assert run("config", "get-value", "batchwrap", "results_base").strip().splitlines()[-1] == "results"
