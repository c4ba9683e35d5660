"""By which properties each list can be filtered, and with which comparisons.

https://learn.microsoft.com/rest/api/batchservice/odata-filters-in-batch
"""

from __future__ import annotations

from collections.abc import Iterable

Allowed = dict[str, frozenset[str]]

_SAME = frozenset({"eq", "ne"})
_ORDERED = _SAME | {"ge", "gt", "le", "lt"}
_NAMED = _ORDERED | {"startswith"}


def _table(*, named: str = "", same: str = "", ordered: str = "") -> Allowed:
    groups: Iterable[tuple[str, frozenset[str]]] = ((named, _NAMED), (same, _SAME), (ordered, _ORDERED))
    return {name: words for names, words in groups for name in names.split()}


_TIMES = "stateTransitionTime creationTime lastModified executionInfo/startTime executionInfo/endTime"
_EXECUTION = "startTime endTime exitCode"


def _execution(kind: str) -> Allowed:
    return _table(same=f"{kind}/state {kind}/result", ordered=" ".join(f"{kind}/{name}" for name in _EXECUTION.split()))


_JOBS_OF_SCHEDULE = _table(named="executionInfo/poolId", same="state", ordered=_TIMES)
_FILES: Allowed = {"name": frozenset({"startswith"})}

#: By the operation's name; a list that is not here takes no filter.
FILTERS: dict[str, Allowed] = {
    "list_supported_images": _table(same="osType verificationType nodeAgentSKUId"),
    "list_nodes": _table(same="state", ordered="stateTransitionTime lastBootTime allocationTime")
    | _execution("startTaskInfo"),
    "list_pool_node_counts": {"poolId": frozenset({"eq"})},
    "list_task_files": _FILES,
    "list_node_files": _FILES,
    "list_jobs_from_schedule": _JOBS_OF_SCHEDULE,
    "list_job_schedules": _table(
        named="id",
        same="state",
        ordered="stateTransitionTime creationTime lastModified executionInfo/endTime schedule/doNotRunUntil "
        "schedule/doNotRunAfter",
    ),
    "list_jobs": _JOBS_OF_SCHEDULE | _table(named="id"),
    "list_pools": _table(
        named="id",
        same="state allocationState enableAutoScale vmSize enableInterNodeCommunication",
        ordered="stateTransitionTime allocationStateTransitionTime creationTime lastModified",
    ),
    "list_job_preparation_and_release_task_status": _table(same="poolId nodeId")
    | _execution("jobPreparationTaskExecutionInfo")
    | _execution("jobReleaseTaskExecutionInfo"),
    # The page has lastModifiedTime, which no task has: it is taken for lastModified.
    "list_tasks": _table(
        named="id", same="state executionInfo/result", ordered=f"{_TIMES} lastModifiedTime executionInfo/exitCode"
    ),
    "list_pool_usage_metrics": {"poolId": _NAMED - {"ne"}},
}
#: Names that a filter may use for a property of another name.
ALIASES = {"lastModifiedTime": "lastModified"}
