"""Find, and remove if asked to, what runs left on the Batch account."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_batchwrap import sweep
from airflow_batchwrap.config.durations import parse_duration
from airflow_batchwrap.exceptions import ConfigError, TryAgain
from airflow_batchwrap.operators.base import BatchWrapOperator, Templated

if TYPE_CHECKING:
    from airflow.sdk import Context


class SweepOrphansOperator(BatchWrapOperator):
    """List the pools and jobs of this package whose DAG run is over, and remove them if ``delete`` says so.

    Only what carries this package's metadata is looked at. A run that this Airflow does not know may belong to another
    one on the same account: what it made stays, unless ``older_than`` is given.

    :param delete: remove what the list says would go; by default nothing is changed.
    :param older_than: also let go of what runs unknown to this Airflow made, once it is older than this.
    """

    def __init__(
        self, *, delete: bool = False, older_than: Templated[timedelta | str | None] = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.delete = delete
        self.older_than = older_than

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Look; return kind, id, owner, age in seconds, and what becomes of each and why."""

        def ask(dag_id: str, run_id: str) -> sweep.RunState:
            count = context["ti"].get_dr_count
            if count(dag_id, run_ids=[run_id], states=["queued", "running"]):
                return "live"
            return "over" if count(dag_id, run_ids=[run_id], states=["success", "failed"]) else "unknown"

        found = sweep.look(self.hook, ask, self._age())
        if self.delete:
            found = sweep.remove(self.hook, found)
        for item in found:
            becomes = "removed" if item.removed else "would go" if item.goes and not self.delete else "stays"
            owner = f"{item.dag_id} {item.run_id}"
            self.log.info("%s %s (%s, %s): %s: %s", item.noun, item.entity_id, owner, item.told_age, becomes, item.why)
        self.log.info("%s", sweep.summary(found, self.delete))
        left = [f"{item.noun} {item.entity_id}: {item.why}" for item in found if item.goes and not item.removed]
        if self.delete and left:
            raise TryAgain(f"Not everything could be removed: {'; '.join(left)}")
        return [item.to_json() for item in found]

    def _age(self) -> timedelta | None:
        if self.older_than is None or self.older_than == "":
            return None
        try:
            return parse_duration(self.older_than)
        except ValueError as error:
            raise ConfigError(f"Task {self.task_id!r}: older_than = {self.older_than!r}: {error}.") from None
