"""Find, and remove if asked to, what runs left on the Batch account."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_batchwrap import sweep
from airflow_batchwrap.config.durations import parse_duration
from airflow_batchwrap.exceptions import ConfigError, TryAgain
from airflow_batchwrap.instance import name_of_instance
from airflow_batchwrap.operators.base import BatchWrapOperator, Templated

if TYPE_CHECKING:
    from airflow.sdk import Context


class SweepOrphansOperator(BatchWrapOperator):
    """List this package's pools and jobs whose DAG run is over, and unused blobs; remove them if ``delete`` says so.

    Only what carries this package's metadata is looked at. What another Airflow on the same account made is listed and
    left alone, and so is what bears no Airflow's name.

    :param delete: remove what the list says would go; by default nothing is changed.
    :param older_than: also let go of what runs of this Airflow made that it does not know any more, once it is older
        than this.
    :param unused_for: let go of archives, inputs and calls in Blob, of all DAGs of this Airflow, that nothing has used
        for so long; what a run said that it needs longer stays. None leaves Blob alone.
    """

    def __init__(
        self,
        *,
        delete: bool = False,
        older_than: Templated[timedelta | str | None] = None,
        unused_for: Templated[timedelta | str | None] = timedelta(days=30),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.delete = delete
        self.older_than = older_than
        self.unused_for = unused_for

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Look; return kind, id, owner, age in seconds, and what becomes of each and why."""

        def ask(dag_id: str, run_id: str) -> sweep.RunState:
            count = context["ti"].get_dr_count
            if count(dag_id, run_ids=[run_id], states=["queued", "running"]):
                return "live"
            return "over" if count(dag_id, run_ids=[run_id], states=["success", "failed"]) else "unknown"

        older_than, unused_for = self._age("older_than"), self._age("unused_for")
        instance = name_of_instance()
        found = sweep.sweep(self.hook, ask, older_than, unused_for, instance=instance, delete=self.delete)
        for item in found:
            becomes = "removed" if item.removed else "would go" if item.goes and not self.delete else "stays"
            owner = f"{item.dag_id} {item.run_id}"
            self.log.info("%s %s (%s, %s): %s: %s", item.noun, item.entity_id, owner, item.age_text, becomes, item.why)
        self.log.info("%s", sweep.summary(found, self.delete))
        left = [f"{item.noun} {item.entity_id}: {item.why}" for item in found if item.goes and not item.removed]
        if self.delete and left:
            raise TryAgain(f"Not everything could be removed: {'; '.join(left)}")
        return [item.to_json() for item in found]

    def _age(self, name: str) -> timedelta | None:
        given = getattr(self, name)
        if given is None or given == "":
            return None
        try:
            return parse_duration(given)
        except ValueError as error:
            raise ConfigError(f"Task {self.task_id!r}: {name} = {given!r}: {error}.") from None
