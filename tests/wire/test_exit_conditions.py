"""Exit conditions: which of them speaks for how a task ended, and what becomes of its job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

if TYPE_CHECKING:
    from tests.support.web import Web
    from tests.support.wire import Wire

NONE, DISABLE, TERMINATE = (m.ExitOptions(job_action=action) for action in ("none", "disable", "terminate"))


def performing(wire: Wire, pool: str) -> str:
    """A job that does what its tasks' exit conditions ask for."""
    return wire.job(pool, task_failure_mode="performexitoptionsjobaction")


def missing(web: Web) -> list[m.ResourceFile]:
    """A resource file that is not there."""
    return [m.ResourceFile(http_url=f"{web.url}/gone", file_path="input")]


def denied(web: Web) -> list[m.OutputFile]:
    """An output file that cannot be uploaded."""
    container = m.OutputFileBlobContainerDestination(container_url=f"{web.url}/denied")
    return [
        m.OutputFile(
            file_pattern="../stdout.txt",
            destination=m.OutputFileDestination(container=container),
            upload_options=m.OutputFileUploadConfiguration(upload_condition="taskcompletion"),
        )
    ]


def codes(code: int, options: m.ExitOptions) -> list[m.ExitCodeMapping]:
    """One exit code."""
    return [m.ExitCodeMapping(code=code, exit_options=options)]


def ranges(start: int, end: int, options: m.ExitOptions) -> list[m.ExitCodeRangeMapping]:
    """One range of exit codes."""
    return [m.ExitCodeRangeMapping(start=start, end=end, exit_options=options)]


@pytest.mark.parametrize(
    ("command", "conditions", "state"),
    [
        ("exit 0", None, "active"),
        ("exit 1", None, "completed"),
        ("exit 1", {"default": NONE}, "active"),
        ("exit 1", {"default": DISABLE}, "disabled"),
        ("exit 0", {"default": TERMINATE}, "active"),
        ("exit 0", {"exit_codes": codes(0, TERMINATE)}, "completed"),
        ("exit 4", {"exit_codes": codes(4, DISABLE), "default": NONE}, "disabled"),
        ("exit 7", {"exit_code_ranges": ranges(5, 7, NONE)}, "active"),
        ("exit 8", {"exit_code_ranges": ranges(5, 7, NONE)}, "completed"),
        ("exit 6", {"exit_codes": codes(6, NONE), "exit_code_ranges": ranges(5, 7, TERMINATE)}, "active"),
        ("exit 3", {"exit_codes": codes(3, m.ExitOptions(dependency_action="satisfy"))}, "completed"),
    ],
)
def test_exit_codes(wire: Wire, pool: str, command: str, conditions: dict[str, Any] | None, state: str) -> None:
    job = performing(wire, pool)
    asked = m.ExitConditions(**conditions) if conditions else None
    task = wire.run(job, f"/bin/sh -c '{command}'", exit_conditions=asked)
    found = wire.job_state(job, state)
    assert found.execution_info is not None
    assert found.execution_info.termination_reason == ("TaskFailed" if state == "completed" else None)
    if conditions:
        assert wire.client.get_task(job, task.id).as_dict()["exitConditions"]


def test_error_before_the_command_has_its_own_condition(wire: Wire, pool: str, web: Web) -> None:
    job = performing(wire, pool)
    wire.run(job, "/bin/true", resource_files=missing(web), exit_conditions=m.ExitConditions(pre_processing_error=NONE))
    wire.run(job, "/no/such/program", exit_conditions=m.ExitConditions(pre_processing_error=NONE, default=TERMINATE))
    assert wire.client.get_job(job).state == "active"
    wire.run(job, "/bin/true", resource_files=missing(web), exit_conditions=m.ExitConditions(default=DISABLE))
    wire.job_state(job, "disabled")


def test_failed_upload_has_its_own_condition_which_an_exit_code_beats(wire: Wire, pool: str, web: Web) -> None:
    job = performing(wire, pool)
    spared = m.ExitConditions(file_upload_error=NONE, default=TERMINATE)
    wire.run(job, "/bin/true", output_files=denied(web), exit_conditions=spared)
    beaten = m.ExitConditions(exit_codes=codes(0, NONE), file_upload_error=TERMINATE)
    wire.run(job, "/bin/true", output_files=denied(web), exit_conditions=beaten)
    assert wire.client.get_job(job).state == "active"
    wire.run(job, "/bin/true", output_files=denied(web), exit_conditions=m.ExitConditions(file_upload_error=DISABLE))
    wire.job_state(job, "disabled")


def test_job_goes_on_while_there_are_retries_left(wire: Wire, pool: str, tmp_path: Path) -> None:
    job = performing(wire, pool)
    mark = tmp_path / "tried"
    command = f"/bin/sh -c 'test -e {mark} || {{ touch {mark}; exit 1; }}'"
    task = wire.run(job, command, constraints=m.BatchTaskConstraints(max_task_retry_count=3))
    assert task.execution_info is not None
    assert task.execution_info.result == "success"
    assert wire.client.get_job(job).state == "active"


def test_ending_a_waiting_task_does_nothing_to_the_job(wire: Wire) -> None:
    job = performing(wire, wire.name("no-pool"))
    task = wire.add(job, "/bin/true", exit_conditions=m.ExitConditions(default=TERMINATE))
    wire.client.terminate_task(job, task)
    assert wire.state(job, task, "completed").execution_info is not None
    assert wire.client.get_job(job).state == "active"


def test_ending_a_running_task_is_a_failure_for_the_job(wire: Wire, pool: str) -> None:
    job = performing(wire, pool)
    task = wire.add(job, "/bin/sleep 60")
    wire.state(job, task, "running")
    wire.client.terminate_task(job, task)
    found = wire.job_state(job, "completed")
    assert found.execution_info is not None
    assert found.execution_info.termination_reason == "TaskFailed"


def test_job_action_needs_a_job_that_performs_it(wire: Wire, job: str) -> None:
    for conditions in (
        {"exit_codes": codes(1, NONE)},
        {"exit_code_ranges": ranges(1, 2, TERMINATE)},
        {"pre_processing_error": DISABLE},
        {"file_upload_error": NONE},
        {"default": NONE},
    ):
        asked = m.ExitConditions(**conditions)
        with pytest.raises(HttpResponseError) as caught:
            wire.add(job, "/bin/true", exit_conditions=asked)
        assert caught.value.error is not None
        assert (caught.value.status_code, str(caught.value.error.code)) == (400, "InvalidPropertyValue")
    wire.run(job, "/bin/false", exit_conditions=m.ExitConditions(default=m.ExitOptions(dependency_action="satisfy")))


def test_range_has_to_be_one(wire: Wire, pool: str) -> None:
    job = performing(wire, pool)
    with pytest.raises(HttpResponseError) as caught:
        wire.add(job, "/bin/true", exit_conditions=m.ExitConditions(exit_code_ranges=ranges(3, 2, NONE)))
    assert caught.value.status_code == 400
