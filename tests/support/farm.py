"""A load as a farm has it: clients that add, end, delete and list tasks all at once, while requests fail on purpose.

What a client was answered is all that it knows: `Client.acknowledged` are the tasks whose adding was answered, `gone`
those whose deletion was.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from azure.batch import BatchClient
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

T = TypeVar("T")

#: How often a request is sent at most. With one in ten refused or cut, ten in a row are no chance.
TRIES = 30
#: What tasks write down: that they began and ended, and on which kind of node.
COMMAND = (
    '/bin/sh -c \'echo began $AZ_BATCH_TASK_ID $AZ_BATCH_NODE_IS_DEDICATED >> "$FARM/notes"; read line < "$FARM/gate"; '
    "sleep %s; echo $AZ_BATCH_TASK_ID; "
    'echo ended $AZ_BATCH_TASK_ID $AZ_BATCH_NODE_IS_DEDICATED >> "$FARM/notes"\''
)


def sure(call: Callable[[], T], *fine: str) -> T | None:
    """Send a request until it is answered.

    :param call: sends it.
    :param fine: codes of errors that say that it had taken effect before.
    :return: its answer; None where the answer was one of these errors.
    """
    for _ in range(TRIES):
        try:
            return call()
        except (ServiceRequestError, ServiceResponseError):
            continue
        except HttpResponseError as error:
            code = getattr(error.error, "code", None)
            if code in fine:
                return None
            if error.status_code not in (429, 503):
                raise
    raise AssertionError(f"{TRIES} requests in a row were refused or cut")


class Gate:
    """What tasks wait at until it is opened: a pipe that nobody has opened, then a plain file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "gate"
        os.mkfifo(self._path)

    def open(self) -> None:
        """Let all pass, those that come later too."""
        held = os.open(self._path, os.O_RDWR)
        plain = self._path.with_name("open")
        plain.write_text("")
        plain.rename(self._path)
        os.close(held)


@dataclass
class Client:
    """One client with a job of its own.

    :param batch: Azure's client.
    :param job: its job, which is there.
    :param folder: where its tasks leave notes.
    :param seed: where its random numbers begin.
    """

    batch: BatchClient
    job: str
    folder: Path
    seed: str
    acknowledged: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    did: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def add(self, count: int) -> None:
        """Add so many tasks, one by one or together."""
        self.did["add"] += 1
        first = len(self.acknowledged)
        tasks = [self._task(f"{self.job}-{number}") for number in range(first, first + count)]
        if count == 1:
            sure(lambda: self.batch.create_task(self.job, tasks[0]), "TaskExists")
        else:
            group = m.BatchTaskGroup(task_values=tasks)
            answer = sure(lambda: self.batch.create_task_collection(self.job, group))
            assert answer is not None
            assert answer.result_values is not None
            codes = {(one.status, one.error.code if one.error else None) for one in answer.result_values}
            assert {code for _, code in codes} <= {None, "TaskExists"}, codes
        self.acknowledged |= {task.id for task in tasks}

    def step(self) -> None:
        """Do one of the things that clients of a farm do."""
        what = self._dice.choice(["add", "add", "stop", "delete", "list", "count", "others"])
        self.did[what] += 1
        present = sorted(self.acknowledged - self.gone)
        if what == "add":
            self.add(self._dice.choice([1, 1, 5, 20]))
        elif what == "stop":
            task = self._dice.choice(present)
            self.stopped.add(task)
            sure(lambda: self.batch.terminate_task(self.job, task), "TaskCompleted")
        elif what == "delete":
            task = self._dice.choice(present)
            sure(lambda: self.batch.delete_task(self.job, task), "TaskNotFound")
            self.gone.add(task)
        elif what == "list":
            assert self.listed().keys() == set(present)
        elif what == "count":
            counts = sure(lambda: self.batch.get_job_task_counts(self.job))
            assert counts is not None
            assert counts.task_counts.active + counts.task_counts.running + counts.task_counts.completed == len(present)
        else:
            sure(lambda: list(self.batch.list_jobs()))

    def listed(self) -> dict[str, m.BatchTask]:
        """The job's tasks by their ids."""
        tasks = sure(lambda: list(self.batch.list_tasks(self.job, max_results=50))) or []
        assert len({task.id for task in tasks}) == len(tasks)
        return {str(task.id): task for task in tasks}

    def _task(self, name: str) -> m.BatchTaskCreateOptions:
        settings = [m.EnvironmentSetting(name="FARM", value=str(self.folder))]
        command = COMMAND % self._dice.choice(["0", "0.05", "0.2"])
        return m.BatchTaskCreateOptions(id=name, command_line=command, environment_settings=settings)


def judge(client: Client, notes: dict[str, Counter[tuple[str, str]]]) -> Counter[str]:
    """Say what a client's tasks came to, and assert that nothing was lost or doubled.

    :param client: a client that is done, as its job is.
    :param notes: what all tasks wrote down: by task, how often it (`began` or `ended`, on a dedicated node).
    :return: how many tasks ended how.
    """
    tasks = client.listed()
    assert tasks.keys() == client.acknowledged - client.gone
    came: Counter[str] = Counter()
    for name, task in tasks.items():
        assert task.state == "completed", name
        info = task.execution_info
        assert info is not None
        assert info.end_time is not None
        noted = notes.get(name, Counter())
        # A node that is taken away may take a task with it that has just written its last line.
        assert noted["ended", "true"] <= 1, (name, noted)
        came["success" if info.result == "success" else "failure"] += 1
        if info.result == "success":
            assert info.exit_code == 0
            assert noted["ended", "true"] + noted["ended", "false"] >= 1, (name, noted)
            spot = noted["began", "false"]
            assert noted["began", "true"] <= 1, (name, noted)
            assert spot or (noted["began", "true"], noted["ended", "true"]) == (1, 1), (name, noted)
        else:
            assert name in client.stopped, name
            assert info.failure_info is not None
            assert info.failure_info.code == "TaskEnded"
    counts = sure(lambda: client.batch.get_job_task_counts(client.job))
    assert counts is not None
    found = counts.task_counts
    assert (found.active, found.running, found.succeeded, found.failed) == (0, 0, came["success"], came["failure"])
    return came
