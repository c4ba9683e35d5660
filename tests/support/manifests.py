"""What tests of manifests share: two steps, a workspace with them, and a manifest's task.

spaced = manifests.workspace(bench, pool)
manifests.task(bench, spaced, [[1], [2]], tolerance=1)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from azure.batch import BatchClient

    from tests.support.bench import Bench

ECHO = "def do_action(engine, *args):\n    return {'args': list(args), 'index': engine.context['map_index']}\n"
ODD = """
    import pathlib, sys

    def do_action(engine, number, gate=None):
        print("looking at", number)
        if int(number) % 2 and not (gate and pathlib.Path(gate).exists()):
            raise ValueError(f"{number} is odd")
        return engine.context["attempt"]
"""


def workspace(bench: Bench, pool: str) -> dict[str, Any]:
    """A workspace with the two steps."""
    from airflow_batchwrap import UsePoolOperator

    bench.steps(_1_echo=ECHO, _2_odd=ODD)
    found: dict[str, Any] = bench.run(bench.make(UsePoolOperator, "set_up", pool_id=pool, steps="steps"))
    return found


def manifest(bench: Bench, workspace: dict[str, Any], entries: Any, **arguments: Any) -> Any:
    """A manifest's task."""
    from airflow_batchwrap import RunBatchManifestOperator

    return bench.make(
        RunBatchManifestOperator, "many", manifest=entries, workspace=workspace, **{"retries": 3, **arguments}
    )


def jobs_of(client: BatchClient, bench: Bench, state: str = "") -> list[Any]:
    """The jobs of the manifest's task, of one state or of all."""
    where = f"startswith(id, '{bench.dag.dag_id}-many')" + (f" and state eq '{state}'" if state else "")
    return list(client.list_jobs(filter=where))
