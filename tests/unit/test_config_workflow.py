"""The workflow section, times, and task.json."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.config import (
    Manifest,
    ManifestEntry,
    WorkflowConfig,
    check_container_name,
    format_duration,
    parse_duration,
)
from airflow_batchwrap.exceptions import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10 s", 10),
        ("10s", 10),
        ("0", 0),
        (0, 0),
        ("1.5 min", 90),
        ("2 h", 7200),
        ("1 hour 30 minutes", 5400),
        ("1 h, 5 secs", 3605),
        ("7 days", 604800),
        ("1 week", 604800),
        ("PT15M", 900),
        ("pt1h30m", 5400),
        ("P7D", 604800),
        ("P1DT0.5S", 86400.5),
        (timedelta(minutes=3), 180),
    ],
)
def test_times_are_read(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (30, "a number alone has no unit"),
        ("30", "a number alone has no unit"),
        (1.5, "a number alone has no unit"),
        ("", "empty"),
        ("soon", "not a length of time"),
        ("3 parsecs", "not a length of time"),
        ("-3 min", "not a length of time"),
        ("P1M", "not a length of time"),
        ("PT", "not a length of time"),
        (True, "not a length of time"),
        (None, "not a length of time"),
        ("99999999999999 days", "too long"),
        ("9" * 400 + " s", "too long"),
    ],
)
def test_what_is_no_time_is_told(text: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10_000)))
def test_a_time_is_read_as_it_was_written(length: timedelta) -> None:
    assert abs(parse_duration(format_duration(length)) - length) <= timedelta(microseconds=1)


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="step_timeout"):
        WorkflowConfig(step_timeout=timedelta(seconds=-1))


def test_the_section_is_read_beside_the_pool(tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    file.write_text(json.dumps({"vm_size": "x", "workflow": {"step_timeout": "2 h", "TASK_OUTPUT_CONTAINER": "out"}}))
    config = WorkflowConfig.from_json(file, required_slots=2)
    assert (config.step_timeout, config.output_container, config.task_slots) == (timedelta(hours=2), "out", 2)
    file.write_text("{}")
    assert WorkflowConfig.from_json(file) == WorkflowConfig()
    file.write_text('{"workflow": []}')
    with pytest.raises(ConfigError, match="workflow: use a JSON object"):
        WorkflowConfig.from_json(file)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"step_timeout": "8 days"}, "longer than job_wall_clock"),
        ({"job_wall_clock": "181 days"}, "after 180 days"),
        ({"step_timeout": 0}, "must be more than 0"),
        ({"poll_interval": "0 s"}, "must be more than 0"),
        ({"batch_retries": -1}, "greater than or equal to 0"),
        ({"task_slots": 0}, "greater than or equal to 1"),
        ({"retention_days": 0}, "greater than or equal to 1"),
        ({"output_container": "My_Results"}, "not a container's name"),
        ({"idle_minutes": 5}, "beside vm_size"),
        ({"step_timeot": "1 h"}, "did you mean step_timeout"),
    ],
)
def test_what_cannot_work_is_refused(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WorkflowConfig.from_dict(given_)


def test_no_wait_on_the_worker_is_a_choice() -> None:
    assert WorkflowConfig(inline_wait=0).inline_wait == timedelta(0)


@pytest.mark.parametrize("name", ["abc", "a1b", "results-2026", "a" * 63, "0-0"])
def test_container_names_that_azure_takes(name: str) -> None:
    assert check_container_name(name) == name


@pytest.mark.parametrize(
    "name", ["ab", "a" * 64, "-abc", "abc-", "a--b", "Abc", "a_b", "a.b", "abc\n", "", "$root", "é" * 3]
)
def test_container_names_that_azure_refuses(name: str) -> None:
    with pytest.raises(ValueError, match="3 to 63"):
        check_container_name(name)


def test_a_manifest_of_the_predecessor_is_read(tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(
        json.dumps(
            {
                "TASK_MODULES": ["1_task.py", "2_task.py"],
                "TASK_MODULES_DIRECTORY": "",
                "TASK_ARGS": "",
                "TASK_OUTPUT_CONTAINER": "results",
                "JOB_MANIFEST": [
                    {"TASK_MODULE": "1_task.py", "TASK_INPUT": "java -jar a.jar 10.0 100"},
                    {"TASK_MODULE": "1_task.py", "TASK_INPUT": "java -jar a.jar 24.0 100"},
                ],
            }
        )
    )
    manifest = Manifest.from_json(file)
    assert manifest.output_container == "results"
    assert manifest.entries == (
        ManifestEntry(step="1_task.py", args="java -jar a.jar 10.0 100"),
        ManifestEntry(step="1_task.py", args="java -jar a.jar 24.0 100"),
    )
    assert (manifest.steps, manifest.steps_folder) == (("1_task.py", "2_task.py"), None)


@pytest.mark.parametrize(
    ("item", "entry"),
    [
        (["1_task.py", "input.txt 2 34"], ManifestEntry(step="1_task.py", args="input.txt 2 34")),
        (["1_task.py"], ManifestEntry(step="1_task.py")),
        ("1_task.py", ManifestEntry(step="1_task.py")),
        ({"task": "1_task.py", "input": [1, {"a": None}]}, ManifestEntry(step="1_task.py", args=(1, {"a": None}))),
        ({"step": "1_task.py", "args": None}, ManifestEntry(step="1_task.py")),
        ({"command": "sort <in >out"}, ManifestEntry(command="sort <in >out")),
        ({"step": "1_task.py", "args": " kept as it is "}, ManifestEntry(step="1_task.py", args=" kept as it is ")),
    ],
)
def test_an_entry_may_be_written_in_several_ways(item: Any, entry: ManifestEntry) -> None:
    assert Manifest.from_dict({"tasks": [item]}).entries == (entry,)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "lists nothing to run"),
        ({"TASK_OUTPUT_CONTAINER": "results"}, "lists nothing to run"),
        ({"tasks": "1_task.py"}, "tasks = '1_task.py': use a JSON array"),
        ({"tasks": [{"args": "x"}]}, "tasks.0 = a dict: use either a step or a command"),
        ({"tasks": [{"step": "1.py", "command": "true"}]}, "use either a step or a command, and not both"),
        ({"tasks": [{"command": " "}]}, "tasks.0.command"),
        ({"tasks": [{"command": "sort", "args": "x"}]}, "a command takes no args"),
        ({"tasks": [["a.py", 1, 2]]}, "tasks.0"),
        ({"tasks": [7]}, "tasks.0"),
        ({"tasks": [{"step": "../1_task.py"}]}, "without a folder"),
        ({"tasks": [{"step": ".."}]}, "without a folder"),
        ({"tasks": [{"step": ""}]}, "tasks.0.step"),
        ({"tasks": [{"step": "1.py", "args": {"a": 1}}]}, "tasks.0.args"),
        ({"tasks": [{"step": "1.py", "TASK_MODULE": "2.py"}]}, "tasks.0.step and TASK_MODULE are two names"),
        ({"tasks": ["1.py"], "JOB_MANIFEST": ["2.py"]}, "tasks and JOB_MANIFEST are two names"),
        ({"tasks": ["1.py"], "TASK_OUTPUT_CONTAINER": "Bad_Name"}, "output_container = 'Bad_Name'"),
        ({"tasks": ["1.py"], "ouput_container": "abc"}, "did you mean output_container"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_told(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Manifest.from_dict(data, source="task.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("task.json: ")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("-Xmx2g -Dname='a b'", "-Xmx2g -Dname='a b'"),
        (["-Xmx2g", "-Dname=a b"], "-Xmx2g '-Dname=a b'"),
        ([], ""),
    ],
)
def test_options_of_java(given: Any, kept: str) -> None:
    config = WorkflowConfig(java_options=given)
    assert config.java_options == kept
    assert WorkflowConfig.from_dict(config.to_dict(defaults=True)).java_options == kept
    late = WorkflowConfig(java_options=["-Xmx{{ params.memory }}", "-server"])
    assert late.rendered(lambda value: value.replace("{{ params.memory }}", "3g")).java_options == "-Xmx3g -server"


@pytest.mark.parametrize(("given", "said"), [("it's", "close the quote"), (3, "use a text"), ([3], "use a text")])
def test_options_of_java_that_cannot_be(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"java_options.*{said}"):
        WorkflowConfig(java_options=given)
