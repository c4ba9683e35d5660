"""To callbacks, listeners, assets, XCom backends, mapping and ``dag.test()`` a Batch task is as ordinary as any task.

One DAG does the same work in four ways: two ordinary operators, one of which defers, and `RunBatchTaskOperator` waited
for on the worker and deferred. What Airflow tells of each way has to be what it tells of the ordinary one beside it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_batchwrap.local import runner
from airflow_batchwrap.stack import home

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService

    from .conftest import StartAirflow

# Ours, and the ordinary way that it is compared with: what is deferred begins once more on a worker.
PAIRS = [("inline", "python"), ("deferred", "peer")]
WAYS = ("python", "peer", "inline", "deferred")
TASKS = ("WAY.one", "WAY.many", "WAY.bad", "WAY.final")
# What a resumed task tells a second time.
BEGINNINGS = {"running heard", "pre_execute", "on_execute_callback"}

# On two cores shared with other tests each of the two runs takes minutes, and half a minute otherwise.
pytestmark = pytest.mark.timeout(900)

# Seconds that deferred work takes on a real Airflow, which fails a task that is back from the triggerer before its
# scheduler has heard that it went there, whoever's task it is.
PAUSE = 10

STEP = '''
    """What is done in every way; by itself it returns what it is mapped over."""
    import time


    def do_action(engine, way, number=None):
        if way == "deferred":
            time.sleep(PAUSE)
        if number is None:
            return [[way, 1], [way, 2]]
        if number == 0:
            raise ValueError("This one is to fail.")
        return {"way": way, "number": number, "native": [True, None, 1.5, "\\u00fc"]}
'''

NOTING = '''
    """Callbacks, a listener and an XCom backend that note what Airflow tells them."""
    import asyncio, json, os

    from airflow.listeners import hookimpl
    from airflow.plugins_manager import AirflowPlugin
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.triggers.base import BaseTrigger, TriggerEvent


    def note(what, ti=None, **more):
        of = {} if ti is None else {"task": ti.task_id, "index": ti.map_index, "try": ti.try_number, "of": ti.max_tries}
        line = json.dumps({"what": what, **of, **more}) + "\\n"
        descriptor = os.open(os.environ["ORDINARY_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


    def callback(kind):
        def noting(context):
            ti, failure = context["ti"], isinstance(context.get("exception"), Exception)
            note(kind, ti, state=str(ti.state), failure=failure)

        return noting


    KINDS = [f"on_{event}_callback" for event in ("execute", "success", "retry", "failure")]
    CALLBACKS = {kind: callback(kind) for kind in KINDS}


    class Listener:
        @hookimpl
        def on_task_instance_running(self, previous_state, task_instance):
            note("running heard", task_instance, before=str(previous_state))

        @hookimpl
        def on_task_instance_success(self, previous_state, task_instance):
            note("success heard", task_instance, before=str(previous_state))

        @hookimpl
        def on_task_instance_failed(self, previous_state, task_instance, error):
            note("failed heard", task_instance, before=str(previous_state), failure=isinstance(error, Exception))

        @hookimpl
        def on_asset_event_emitted(self, asset_event):
            source = [asset_event.source_task_id, asset_event.source_map_index]
            note("asset heard", asset=asset_event.asset.name, source=source, extra=asset_event.extra)


    class NotingPlugin(AirflowPlugin):
        name = "noting"
        listeners = [Listener()]


    class WrappingXCom(BaseXCom):
        """What it stores is not the value itself."""

        @staticmethod
        def serialize_value(value, *, key=None, task_id=None, map_index=None, **where):
            note("written", task=task_id, index=map_index, key=key, value=value)
            return BaseXCom.serialize_value({"wrapped": value})

        @staticmethod
        def deserialize_value(result):
            value = BaseXCom.deserialize_value(result)["wrapped"]
            note("read", value=value)
            return value


    class Soon(BaseTrigger):
        """Fire by itself."""

        def serialize(self):
            return "noting.Soon", {}

        async def run(self):
            await asyncio.sleep(PAUSE)
            yield TriggerEvent(None)
'''

DAGS = '''
    """The same work in four ways, and a DAG that waits for an asset of each."""
    import runpy
    from datetime import timedelta
    from pathlib import Path

    from airflow.providers.standard.operators.python import PythonOperator
    from airflow.sdk import DAG, Asset, BaseOperator, TaskGroup, task
    from noting import CALLBACKS, Soon, note

    from airflow_batchwrap import CreatePoolOperator, DeletePoolOperator, RunBatchTaskOperator

    do_action = runpy.run_path(str(Path(__file__).parent / "steps/1_work.py"))["do_action"]


    class Peer(BaseOperator):
        """An ordinary operator that defers."""

        template_fields = ("args",)

        def __init__(self, *, args, **kwargs):
            super().__init__(**kwargs)
            self.args = args

        def execute(self, context):
            self.defer(trigger=Soon(), method_name="execute_complete")

        def execute_complete(self, context, event):
            return do_action(None, *self.args)


    def before(context):
        note("pre_execute", context["ti"])


    def after(context, result):
        note("post_execute", context["ti"], result=result)
        for asset in context["task"].outlets:
            context["outlet_events"][asset].extra = {"result": result}


    @task
    def receive(values):
        for way, (one, many) in values.items():
            note("received", way=way, one=one, many=list(many))


    @task
    def consume(triggering_asset_events=None):
        for asset, events in triggering_asset_events.items():
            told = [[event.source_task_id, event.source_map_index, event.extra] for event in events]
            note("consumed", asset=asset.name, events=told)


    HOOKS = {**CALLBACKS, "pre_execute": before, "post_execute": after}
    RETRIES = {"retries": 1, "retry_delay": timedelta(0)}

    with DAG("ordinary", schedule=None) as dag:
        set_up = CreatePoolOperator(
            task_id="set_up", steps="steps", pool_config={"target_dedicated_nodes": 1, "task_slots_per_node": 16}
        )
        clean_up = DeletePoolOperator(task_id="clean_up", workspace=set_up.output).as_teardown(setups=set_up)
        step = {"step": "1_work.py", "workspace": set_up.output, "poll_interval": "1 s"}
        ways = {
            "python": (PythonOperator, "op_args", {"python_callable": lambda *args: do_action(None, *args)}),
            "peer": (Peer, "args", {}),
            "inline": (RunBatchTaskOperator, "args", {**step, "inline_wait": "900 s"}),
            "deferred": (RunBatchTaskOperator, "args", {**step, "inline_wait": 0}),
        }
        values = {}
        for way, (kind, args, how) in ways.items():
            with TaskGroup(way) as group:

                def of(name):
                    return {"task_id": name, "outlets": [Asset(f"{way}_{name}")], **how, **HOOKS}

                one = kind(**of("one"), **RETRIES, **{args: [way]})
                many = kind.partial(**of("many"), **RETRIES).expand(**{args: one.output})
                bad = kind(**of("bad"), **RETRIES, **{args: [way, 0]})
                final = kind(**of("final"), **{args: [way, 0]})
            values[way] = [one.output, many.output]
            group >> clean_up
        receive(values)

    with DAG("consumer", schedule=[Asset(f"{way}_one") for way in ways]):
        consume()

    if __name__ == "__main__":
        dag.test()
'''


@dataclass
class Seen:
    """What callbacks, listener and XCom backend noted of one run, and what is in Airflow's database after it."""

    log: Path
    home: Path

    def notes(self, way: str, *wanted: str) -> list[dict[str, Any]]:
        """Return the notes of a way, all or those of some kinds, with WAY for its name."""
        lines = [line.replace(f'"{way}', '"WAY') for line in self.log.read_text().splitlines() if f'"{way}' in line]
        notes = [json.loads(line) for line in lines]
        return [note for note in notes if not wanted or note["what"] in wanted]

    def tasks(self, way: str, without: Collection[str] = ()) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """Return the notes of each task of a way, in order.

        :param without: kinds of notes to leave out.
        """
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for note in self.notes(way):
            task = note.pop("task", "")
            if task in TASKS and note["what"] not in without and note.get("key", "return_value") == "return_value":
                if task == "WAY.final":
                    # Without retries there are two all the same, for what is not the step's fault.
                    note.pop("of", None)
                found.setdefault((task, note.pop("index")), []).append(note)
        return found

    def rows(self, way: str, query: str) -> list[Any]:
        """Ask Airflow's database; return the rows as JSON has them, with WAY for the way's name."""
        with closing(sqlite3.connect(f"file:{self.home / 'airflow.db'}?mode=ro", uri=True)) as database:
            rows = database.execute(query, {"way": way}).fetchall()
        found: list[Any] = json.loads(json.dumps(rows).replace(way, "WAY"))
        return found

    def errors(self, way: str) -> Counter[tuple[str, str]]:
        """Return how often each error was logged in each file of a way's logs."""
        found: Counter[tuple[str, str]] = Counter()
        for path in self.home.glob(f"logs/*/*/task_id={way}.*/**/attempt=*.log"):
            events = [json.loads(line) for line in path.read_text().splitlines()]
            name = "/".join(path.parts[path.parts.index("logs") + 3 :]).replace(way, "WAY")
            found.update((name, event["event"]) for event in events if event["level"] in ("error", "critical"))
        return found


def write_dags(folder: Path, pause: int = PAUSE) -> None:
    """Write the DAG file and its step.

    :param pause: seconds that deferred work takes.
    """
    (folder / "ordinary.py").write_text(textwrap.dedent(DAGS))
    (folder / "steps").mkdir()
    (folder / "steps/1_work.py").write_text(textwrap.dedent(STEP).replace("PAUSE", str(pause)))
    (folder / "steps/.airflowignore").write_text("*\n")


def noting(folder: Path, pause: int = PAUSE) -> dict[str, str]:
    """Write the plugin; return the settings that bring it into an Airflow."""
    (folder / "plugins").mkdir()
    (folder / "plugins/noting.py").write_text(textwrap.dedent(NOTING).replace("PAUSE", str(pause)))
    path = [str(folder / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "ORDINARY_NOTES": str(folder / "notes"),
        "PYTHONPATH": os.pathsep.join(path),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder / "plugins"),
        "AIRFLOW__CORE__XCOM_BACKEND": "noting.WrappingXCom",
    }


@pytest.fixture(scope="module")
def real(real_airflow: StartAirflow, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One run on a real Airflow, and the run of the DAG that waits for its assets."""
    folder: Path = tmp_path_factory.mktemp("ordinary").resolve()
    settings = noting(folder) | {"AIRFLOW__CORE__PARALLELISM": "8"}
    with real_airflow(write_dags, settings=settings) as stack:
        seen = Seen(folder / "notes", stack.folder / "airflow")
        for dag_id in ("ordinary", "consumer"):
            stack.airflow.wait_for_dag(dag_id, timeout=180)
        run_id = stack.ask(lambda: stack.client.trigger("ordinary"))
        over = ("success", "failed")
        stack.wait("the run's end", lambda: stack.client.run_state("ordinary", run_id) in over, 600, pause=0.5)
        stack.wait("the run that assets start", lambda: all(seen.notes(way, "consumed") for way in WAYS), 300)
    return seen


@pytest.fixture(scope="module")
def in_process(azurite: AzuriteService, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One run by ``dag.test()``, in a process of its own: an XCom backend and listeners are for a whole process."""
    folder: Path = tmp_path_factory.mktemp("ordinary").resolve()
    (folder / "dags").mkdir()
    write_dags(folder / "dags", pause=0)
    home.create(folder / "airflow", home.settings(folder / "dags", 0, folder / "results"))
    service = runner.start(folder / "batch", log=folder / "batch.log")
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(folder / "dags/ordinary.py")],
            env=home.environment(folder / "airflow", home.connections(azurite, service) | noting(folder, pause=0)),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        service.stop()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Seen(folder / "notes", folder / "airflow")


@pytest.fixture(scope="module", params=["real", "in_process"])
def seen(request: pytest.FixtureRequest) -> Seen:
    """Return what was seen of one of the two runs."""
    found: Seen = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_callbacks_and_listeners(seen: Seen, ours: str, theirs: str) -> None:
    """Each is called as often, in the same order, in the same try and state, and told as much."""
    assert seen.tasks(ours) == seen.tasks(theirs)


def test_what_is_called(seen: Seen) -> None:
    """The ordinary tasks did call everything, or the comparison would tell nothing."""
    begin = ["running heard", "pre_execute", "on_execute_callback"]
    good = [*begin, "post_execute", "written", "on_success_callback", "success heard"]
    final = [*begin, "on_failure_callback", "failed heard"]
    bad = [*begin, "on_retry_callback", "failed heard", *final]
    wanted = {("WAY.one", -1): good, ("WAY.many", 0): good, ("WAY.many", 1): good, ("WAY.bad", -1): bad}
    found = seen.tasks("python")
    assert {task: [note["what"] for note in notes] for task, notes in found.items()} == {
        **wanted,
        ("WAY.final", -1): final,
    }
    assert [note["try"] for note in found["WAY.bad", -1]] == [1] * 5 + [2] * 5


def test_deferred_beside_one_that_is_not(seen: Seen) -> None:
    """But for beginning once more on a worker, a deferred step is what a task that never defers is."""
    assert seen.tasks("deferred", BEGINNINGS) == seen.tasks("python", BEGINNINGS)


@pytest.mark.parametrize("way", WAYS)
def test_values(seen: Seen, way: str) -> None:
    """What comes out of the XCom backend is native, and in the order of the mapped tasks."""
    one = [["WAY", 1], ["WAY", 2]]
    many = [{"way": "WAY", "number": number, "native": [True, None, 1.5, "\u00fc"]} for number in (1, 2)]
    assert seen.notes(way, "received") == [{"what": "received", "way": "WAY", "one": one, "many": many}]
    stored = seen.rows(
        way,
        "select value from xcom where task_id in (:way || '.one', :way || '.many') and key = 'return_value' "
        "order by task_id desc, map_index",
    )
    assert [json.loads(value) for (value,) in stored] == [{"wrapped": value} for value in (one, *many)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_reads_of_the_xcom_backend(seen: Seen, ours: str, theirs: str) -> None:
    """A value is read as often as an ordinary task's is."""

    def reads(way: str) -> Counter[str]:
        return Counter(json.dumps(note["value"]) for note in seen.notes(way, "read"))

    assert reads(ours) == reads(theirs)
    # Nobody but the one task that receives them reads what the mapped tasks returned.
    assert {times for value, times in reads(ours).items() if value.startswith("{")} == {1}


@pytest.mark.parametrize("way", ["inline", "deferred"])
def test_links_pass_the_xcom_backend_by(seen: Seen, way: str) -> None:
    """Airflow's page reads a link's XCom past the backend, and Airflow itself writes it past the backend."""
    stored = seen.rows(
        way, "select distinct value from xcom where task_id = :way || '.one' and key like '~_link~_%' escape '~'"
    )
    assert len(stored) == 2
    assert all(json.loads(value).startswith("http://127.0.0.1:") for (value,) in stored)
    written = {note["key"] for note in seen.notes(way, "written")}
    assert [key for key in written if key.startswith("_link_")] == []


@pytest.mark.parametrize("way", WAYS)
def test_assets(seen: Seen, way: str) -> None:
    """Each task that succeeds makes one event, with what was added to it; one that fails makes none."""
    rows = seen.rows(
        way,
        "select asset.name, source_task_id, source_map_index, asset_event.extra from asset_event "
        "join asset on asset.id = asset_event.asset_id where asset.name like :way || '~_%' escape '~'",
    )
    events = [[asset, [task, index], json.loads(extra)] for asset, task, index, extra in rows]
    written = [note for note in seen.notes(way, "written") if note["key"] == "return_value"]
    sources = [([note["task"], note["index"]], {"result": note["value"]}) for note in written]
    wanted = [[source[0].replace(".", "_"), source, extra] for source, extra in sources]
    assert sorted(events) == sorted(wanted)
    assert len(events) == 3
    heard = [[note["asset"], note["source"], note["extra"]] for note in seen.notes(way, "asset heard")]
    assert sorted(heard) == sorted(wanted)


@pytest.mark.parametrize("way", WAYS)
def test_run_that_assets_start(real: Seen, way: str) -> None:
    """A DAG that waits for an asset of each way runs, and sees which task each is from."""
    events = [["WAY.one", -1, {"result": [["WAY", 1], ["WAY", 2]]}]]
    assert real.notes(way, "consumed") == [{"what": "consumed", "asset": "WAY_one", "events": events}]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_errors_in_the_logs(real: Seen, ours: str, theirs: str) -> None:
    """What went wrong is in the logs, and nothing else."""
    assert sum(real.errors(theirs).values()) == 3  # two tries of one, one of the other
    assert real.errors(ours) == real.errors(theirs)


def test_states_and_tries(seen: Seen) -> None:
    """All ways end in the same states, after as many tries."""
    found = [
        seen.rows(
            way,
            "select task_id, map_index, state, try_number from task_instance where task_id like :way || '.%' "
            "order by task_id, map_index",
        )
        for way in WAYS
    ]
    assert all(rows == found[0] for rows in found)
    assert ["WAY.bad", -1, "failed", 2] in found[0]
    assert ["WAY.final", -1, "failed", 1] in found[0]
