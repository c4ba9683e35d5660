"""The tables of legal transitions: complete, in the API's words, and obeyed."""

from __future__ import annotations

import pytest

from airflow_batchwrap.local.model import transitions
from airflow_batchwrap.local.model.entities import Job, Pool
from airflow_batchwrap.local.model.states import Allocation
from airflow_batchwrap.local.model.transitions import IllegalTransition, Table
from airflow_batchwrap.local.wire import schema


@pytest.mark.parametrize(
    ("table", "enumeration", "unused"),
    [
        (transitions.POOL, "BatchPoolState", set()),
        (transitions.ALLOCATION, "AllocationState", set()),
        (transitions.JOB, "BatchJobState", set()),
        (transitions.TASK, "BatchTaskState", set()),
        (transitions.NODE, "BatchNodeState", {"unknown", "upgradingos"}),
    ],
)
def test_tables_hold_the_states_of_the_api(table: Table, enumeration: str, unused: set[str]) -> None:
    states = set(schema.ENUMS[enumeration].values())
    assert set(table) == states - unused
    assert {state for following in table.values() for state in following} <= set(table)


def test_illegal_transition_is_refused_and_changes_nothing() -> None:
    pool = Pool(1, "p", {})
    with pytest.raises(IllegalTransition, match="steady cannot become stopping"):
        pool.allocate(Allocation.STOPPING)
    job = Job(2, "j", {})
    job.move("terminating")
    with pytest.raises(IllegalTransition, match="terminating cannot become active"):
        job.move("active")
    assert (pool.allocation, job.state, job.previous) == ("steady", "terminating", "active")


def test_entity_is_restored_as_it_was_kept() -> None:
    job = Job(3, "Some-Job", {"poolInfo": {"poolId": "p"}})
    job.changed()
    job.reason = "because"
    job.move("terminating")
    again = Job(3, "", job.body)
    again.restore(job.row()[4])
    assert again.row() == job.row()
    assert (again.id, again.etag, again.state, again.previous) == ("Some-Job", job.etag, "terminating", "active")
