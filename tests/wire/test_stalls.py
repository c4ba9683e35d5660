"""The service's loop is kept from nobody for long: 50 ms at most in one turn."""

from __future__ import annotations

from pathlib import Path

from azure.batch import models as m

from tests.support import stalls
from tests.support.wire import Services, Wire

#: Nodes of a pool, and tasks that get a place at once.
MANY = 1000


def _count(wire: Wire, pool: str, state: str) -> int:
    (counts,) = [one for one in wire.client.list_pool_node_counts() if one.pool_id == pool]
    assert counts.dedicated is not None
    return int(getattr(counts.dedicated, state))


def test_thousand_nodes_and_placements_stall_nothing(services: Services, tmp_path: Path) -> None:
    with stalls.watched(services, tmp_path / "data") as watched:
        wire, client = watched.wire, watched.wire.client
        client.create_pool(wire.pool_options("many", MANY))
        wire.until(lambda: _count(wire, "many", "idle") == MANY, 60)
        assert len(list(client.list_nodes("many"))) == MANY
        watched.no_stall()

        # All of them wait for a pool's slots, which are enabled in one request.
        job = wire.job("many")
        client._disable_job_internal(job, m.BatchJobDisableOptions(disable_tasks="wait"))
        client.create_tasks(job, [m.BatchTaskCreateOptions(id=f"t{one}", command_line="true") for one in range(MANY)])
        watched.forget()
        client._enable_job_internal(job)
        wire.until(lambda: client.get_job_task_counts(job).task_counts.succeeded == MANY, 120)
        watched.no_stall()

        assert len(list(client.list_tasks(job, filter="startswith(id, 't1')"))) == 111
        assert len(list(client.list_tasks(job))) == MANY
        watched.no_stall()

        watched.forget()
        client._resize_pool_internal("many", m.BatchPoolResizeOptions(target_dedicated_nodes=0))
        wire.until(lambda: client.get_pool("many").allocation_state == "steady", 120)
        watched.no_stall()
        assert client.get_pool("many").current_dedicated_nodes == 0
