"""No request that fits, or nearly fits, the description of Azure Batch is answered with a fault of the service."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from schemathesis import GenerationMode

from tests.support.given import shared
from tests.support.schemas import Attack, Things
from tests.support.wire import Services

#: How many requests the whole of it sends, at least.
REQUESTS = int(os.environ.get("SCHEMA_REQUESTS", "20000"))
SEED = int(os.environ.get("SCHEMA_SEED", "1"))
#: How many operations the sample asks for, each in both ways, and how often.
SAMPLE, TIMES = 16, 3


@pytest.fixture
def attack(services: Services, tmp_path: Path) -> Iterator[Attack]:
    """Requests to a service of the test's own, whose nodes are few: what is made on the way may ask for many."""
    description = json.loads(shared("wire/openapi-2025-06-01.json").read_text())
    wire = services(tmp_path / "data", "--capacity", "20")
    made = Attack(Things(wire), description)
    yield made
    made.close()
    log = (wire.service.data / "service.log").read_text()
    wire.service.stop()
    assert "Traceback" not in log, log[-5000:]


def judge(attack: Attack, least: int) -> None:
    """Assert that nothing went wrong, and that the requests came as far as the operations."""
    print(f"{attack.sent} requests, answers by status: {dict(sorted(attack.answered.items()))}")
    assert attack.faults == []
    assert attack.sent >= least
    assert sum(count for status, count in attack.answered.items() if 200 <= status < 300) > attack.sent / 10
    assert attack.answered.get(403, 0) == 0


def test_sample_of_requests_meets_no_fault(attack: Attack) -> None:
    dice = random.Random(SEED)
    for operation in dice.sample(attack.operations, SAMPLE):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            attack.run(operation, mode, examples=TIMES, seed_=SEED)
    judge(attack, SAMPLE)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_no_request_meets_a_fault(attack: Attack) -> None:
    examples = REQUESTS // (2 * len(attack.operations)) + 1
    turn = SEED
    while attack.sent < REQUESTS:
        for operation in attack.operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                attack.run(operation, mode, examples=examples, seed_=turn)
        turn += 1
    judge(attack, REQUESTS)
