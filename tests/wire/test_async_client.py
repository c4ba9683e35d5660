"""The asynchronous client: the same wire, from pool to file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from azure.batch import models as m
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import ResourceNotFoundError

if TYPE_CHECKING:
    from tests.support.wire import Wire


async def test_pool_job_task_and_file(wire: Wire) -> None:
    credential = AzureNamedKeyCredential(wire.service.account, wire.service.key)
    async with BatchClient(wire.service.url, credential) as client:
        pool, job = wire.name("pool"), wire.name("job")
        await client.create_pool(wire.pool_options(pool))
        await client.create_job(m.BatchJobCreateOptions(id=job, pool_info=m.BatchPoolInfo(pool_id=pool)))
        await client.create_tasks(
            job, [m.BatchTaskCreateOptions(id=f"t{n}", command_line=f"/bin/echo {n}") for n in range(150)]
        )
        async with asyncio.timeout(30):
            while (await client.get_job_task_counts(job)).task_counts.succeeded < 150:  # noqa: ASYNC110 - a remote state
                await asyncio.sleep(0.02)
        states = [task.state async for task in client.list_tasks(job, select=["id", "state"], max_results=40)]
        assert states == ["completed"] * 150
        assert b"".join([chunk async for chunk in await client.download_task_file(job, "t7", "stdout.txt")]) == b"7\n"
        properties = await client.get_task_file_properties(job, "t149", "stdout.txt")
        assert properties.content_length == 4
        assert [node.state async for node in client.list_nodes(pool)] == ["idle"]
        await (await client.begin_delete_job(job, polling_interval=0)).wait()
        await (await client.begin_delete_pool(pool, polling_interval=0)).wait()
        with pytest.raises(ResourceNotFoundError):
            await client.get_pool(pool)
