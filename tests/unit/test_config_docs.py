"""docs/configuration.md tells every key, default and older name, and its examples are valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from airflow_batchwrap.config import (
    Credentials,
    Manifest,
    ManifestEntry,
    PoolConfig,
    ResourceFileConfig,
    StartTaskConfig,
    WorkflowConfig,
    legacy,
    manifest,
)
from airflow_batchwrap.config.credentials import IGNORED
from airflow_batchwrap.provider_info import get_provider_info

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the text under a heading, down to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", PAGE, re.MULTILINE)
    assert found, f"no heading {title!r}"
    rest = PAGE[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def first_names(text: str) -> set[str]:
    return {name for row in rows(text) for name in re.findall(r"`([^`]+)`", row[0])}


def examples(title: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section(title), re.DOTALL)]


MODELS: dict[str, list[type[BaseModel]]] = {
    "Pool": [PoolConfig],
    "Start task": [StartTaskConfig, ResourceFileConfig],
    "Workflow section": [WorkflowConfig],
    "task.json": [Manifest, ManifestEntry],
    "credentials.json": [Credentials],
}


@pytest.mark.parametrize(("title", "models"), list(MODELS.items()))
def test_every_key_is_told_and_no_other(title: str, models: list[type[BaseModel]]) -> None:
    keys = {field.alias or name for model in models for name, field in model.model_fields.items()}
    extra = set(IGNORED) if models == [Credentials] else set()
    assert first_names(section(title)) == keys | extra


@pytest.mark.parametrize(("title", "config"), [("Pool", PoolConfig()), ("Workflow section", WorkflowConfig())])
def test_every_default_is_the_real_one(title: str, config: PoolConfig | WorkflowConfig) -> None:
    told = {row[0].strip("` |"): json.loads(row[2].strip("`")) for row in rows(section(title))}
    assert told == config.to_dict(defaults=True)


def test_every_older_name_of_a_pool_key_is_told_with_its_key() -> None:
    told: dict[str, str | None] = {}
    for row in rows(section("Older names")):
        names, keys = re.findall(r"`([^`]+)`", row[0]), re.findall(r"`([^`]+)`", row[1])
        told.update(dict.fromkeys(names, keys[0] if keys else None))
    assert told == {**legacy.POOL_ALIASES, **dict.fromkeys(legacy.POOL_IGNORED)}


@pytest.mark.parametrize("aliases", [manifest.FILE_ALIASES, manifest.ENTRY_ALIASES, WorkflowConfig.aliases])
def test_every_older_name_of_the_other_keys_is_told(aliases: dict[str, str]) -> None:
    assert [name for name in aliases if f"`{name}`" not in PAGE] == []


def test_the_settings_of_airflow_are_told() -> None:
    options = get_provider_info()["config"]["batchwrap"]["options"]
    assert first_names(section("Airflow's own configuration")) == {f"[batchwrap] {name}" for name in options}


def test_the_examples_are_valid() -> None:
    batch = examples("batch.json") + examples("Older names")
    assert len(batch) == 2
    for example in batch:
        workflow = example.pop("workflow", {})
        assert PoolConfig.from_dict(example).total_nodes > 0
        assert WorkflowConfig.from_dict(workflow).to_dict().keys() == workflow.keys()
    for example in examples("task.json"):
        assert Manifest.from_dict(example).output_container == "results"
    for example in examples("credentials.json"):
        assert Credentials.from_dict(example).batch_account_name == "mybatch"


def test_the_python_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "batch.json").write_text("{}")
    script = tmp_path / "dag.py"
    for block in blocks:
        names: dict[str, Any] = {"__name__": "dag", "PoolConfig": PoolConfig}
        exec(compile(block, str(script), "exec"), names)  # noqa: S102 - the page's own code
        assert isinstance(names["pool"], PoolConfig)
    assert PoolConfig.from_json(tmp_path / "batch.large.json").to_dict() == {
        "target_low_priority_nodes": 8,
        "vm_size": "Standard_D8s_v5",
        "task_slots_per_node": 8,
    }
