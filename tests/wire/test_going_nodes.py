"""Nodes that go while they come: nothing of it is a fault, and nothing is left."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from azure.batch import models as m
from azure.core.exceptions import HttpResponseError

from tests.support.wire import Wire

#: How often all nodes of a pool are started anew, and the pool deleted a moment later.
ROUNDS, NODES = 20, 10


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """The pool is still being brought to its first size."""
    try:
        yield
    except HttpResponseError as error:
        if error.status_code != 409:
            raise


def test_nodes_that_go_while_they_start_are_no_fault(own: Callable[[], Wire]) -> None:
    wire, dice = own(), random.Random(8)
    client: Any = wire.client
    ways = [
        lambda pool, node: client._reimage_node_internal(pool, node, {"nodeReimageOption": "requeue"}),
        lambda pool, node: client._reboot_node_internal(pool, node, {"nodeRebootOption": "requeue"}),
    ]
    for number in range(ROUNDS):
        pool = f"pool-{number}"
        wire.client.create_pool(wire.pool_options(pool, NODES))
        nodes = wire.nodes(pool, NODES, "idle")
        for node in nodes:
            dice.choice(ways)(pool, node.id)
        # Some of them have their directories, some are about to, and some are still to be emptied.
        with _refused():
            client._resize_pool_internal(pool, m.BatchPoolResizeOptions(target_dedicated_nodes=NODES // 2))
        client._delete_pool_internal(pool)
    wire.until(lambda: not list(wire.client.list_pools()), 60)
    data: Path = wire.service.data
    assert not list((data / "nodes").iterdir())
    log = (data / "service.log").read_text()
    assert "Traceback" not in log, log[-3000:]
    assert "cannot be made" not in log, log[-3000:]
