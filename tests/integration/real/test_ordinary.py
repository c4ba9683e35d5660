"""To callbacks, listeners, assets, XCom backends, mapping and ``dag.test()`` a Batch task is as ordinary as any task.

One DAG does the same work in four ways: two ordinary operators, one of which defers, and `RunBatchTaskOperator` waited
for on the worker and deferred. What Airflow tells of each way has to be what it tells of the ordinary one beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_batchwrap.local import runner
from airflow_batchwrap.stack import home
from tests.integration.real.seen import PAUSE, Seen, noting

if TYPE_CHECKING:
    from airflow_batchwrap.stack.azurite import AzuriteService
    from tests.support.real_airflow import RealAirflow

# Ours, and the ordinary way that it is compared with: what is deferred begins once more on a worker.
PAIRS = [("inline", "python"), ("deferred", "peer")]
WAYS = ("python", "peer", "inline", "deferred")
# What a resumed task tells a second time.
BEGINNINGS = {"running heard", "pre_execute", "on_execute_callback"}

# On two cores shared with other tests each of the two runs takes minutes, and half a minute otherwise.
pytestmark = pytest.mark.timeout(900)

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

    with DAG("ordinary", schedule=None, max_active_tasks=8) as dag:
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


def write_dags(folder: Path, pause: int = PAUSE) -> None:
    """Write the DAG file and its step.

    :param pause: seconds that deferred work takes.
    """
    (folder / "ordinary.py").write_text(textwrap.dedent(DAGS))
    (folder / "steps").mkdir()
    (folder / "steps/1_work.py").write_text(textwrap.dedent(STEP).replace("PAUSE", str(pause)))
    (folder / "steps/.airflowignore").write_text("*\n")


@pytest.fixture(scope="module")
def real(stack: RealAirflow) -> Seen:
    """One run on a real Airflow, and the run of the DAG that waits for its assets."""
    seen = Seen(stack.folder / "notes", stack.airflow.home)
    stack.add_dags("ordinary", write_dags)
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
            env=home.environment(
                folder / "airflow", home.connections(azurite, service) | noting(folder / "notes", pause=0)
            ),
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
    assert seen.notes(way, "read as it is") == []
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
