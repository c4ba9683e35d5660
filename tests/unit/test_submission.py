"""What is submitted, which attempt it is, and how arguments travel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_batchwrap.attempts.confidential import Confidential, part_params, secrets_of
from airflow_batchwrap.attempts.submission import Submission, choose_attempt, plain_values
from airflow_batchwrap.config import WorkflowConfig
from airflow_batchwrap.exceptions import ConfigError
from airflow_batchwrap.hooks.views import TaskView
from airflow_batchwrap.manifests.rounds import fingerprint_of
from airflow_batchwrap.manifests.rows import Row
from airflow_batchwrap.naming import Attempt, Maker
from airflow_batchwrap.operators.results import _matches
from airflow_batchwrap.workspace import BlobRef, InputFile, ValueReference, Workspace

FAILED = TaskView("completed", exit_code=1, failure_code="FailureExitCode")
RUNNING = TaskView("running")
DONE = TaskView("completed", exit_code=0)
REF = BlobRef("c", "b", 9, "00")


def submission(**changes: object) -> Submission:
    workspace = Workspace("p", True, "j", archive=REF, steps=("1_a.py",), inputs=(InputFile("x", REF),))
    maker = Maker("here", "d", "r", "t")
    whole = Submission(workspace, "1_a.py", "", ["a", 1], {"p": 1}, {"try_number": 1}, "o/1", WorkflowConfig(), maker)
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "epoch", "reported", "number", "adopted"),
    [
        ({}, 1, [], 1, None),
        ({Attempt(1, 1): RUNNING}, 1, [], 1, RUNNING),
        ({Attempt(1, 1): DONE}, 1, [], 1, DONE),
        ({Attempt(1, 1): FAILED}, 1, [], 1, FAILED),
        ({Attempt(1, 1): FAILED}, 1, [1], 2, None),
        ({Attempt(1, 1): FAILED, Attempt(1, 2): RUNNING}, 1, [1], 2, RUNNING),
        ({Attempt(1, 1): RUNNING}, 2, [], 1, None),
        ({}, 1, [1, 2], 3, None),
    ],
)
def test_an_attempt_is_adopted_until_its_failure_was_reported(
    found: dict[Attempt, TaskView], epoch: int, reported: list[int], number: int, adopted: TaskView | None
) -> None:
    assert choose_attempt(found, epoch, reported) == (Attempt(epoch, number), adopted)


def test_the_fingerprint_sees_what_matters_and_nothing_else() -> None:
    whole = submission()
    assert whole.fingerprint() == submission(context={"try_number": 2}, output_prefix="o/2").fingerprint()
    assert whole.fingerprint() != submission(arguments=["a", 2]).fingerprint()
    assert whole.fingerprint() != submission(params={"p": 2}).fingerprint()
    assert whole.fingerprint() != submission(step="2_b.py").fingerprint()
    assert whole.fingerprint() != submission(environment={"A": "1"}).fingerprint()
    assert whole.fingerprint() == submission(settings=WorkflowConfig(step_timeout="1 h")).fingerprint()
    assert whole.fingerprint() != submission(workspace=replace(whole.workspace, inputs=())).fingerprint()


def test_options_of_java_go_with_jars_alone() -> None:
    more = WorkflowConfig(java_options=["-Xmx2g", "-Dname=a b"])
    assert submission(settings=more).fingerprint() == submission().fingerprint()
    assert submission(settings=more).call()[0].java_options == []
    jar, other = submission(step="4_pi.jar"), submission(step="4_pi.jar", settings=more)
    assert jar.fingerprint() != other.fingerprint()
    assert other.call()[0].java_options == ["-Xmx2g", "-Dname=a b"]
    assert jar.call()[0].java_options == []


def test_options_of_java_make_another_manifest_where_it_runs_jars() -> None:
    workspace, nothing = submission().workspace, Confidential()

    def fingerprint(step: str, **settings: str) -> str:
        return fingerprint_of(workspace, [Row(0, step)], {}, {}, nothing, WorkflowConfig(**settings))

    assert fingerprint("1_a.py") == fingerprint("1_a.py", java_options="-Xmx2g")
    assert fingerprint("4_pi.jar") != fingerprint("4_pi.jar", java_options="-Xmx2g")


def test_secrets_count_in_the_fingerprint_by_their_names_and_show_in_no_text() -> None:
    hidden = [submission(confidential=Confidential({"TOKEN": value}, {"p": value})) for value in ("HUSH", "other")]
    assert hidden[0].fingerprint() == hidden[1].fingerprint() != submission().fingerprint()
    assert "HUSH" not in repr(hidden[0])
    assert "HUSH" not in hidden[0].call()[0].dumps()


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ({"A-B": "HUSH"}, "no name of an environment variable"),
        ({"A": "HUSH"}, "in environment as well"),
        ({"B": ["HUSH"]}, "is a list"),
        ({"B": "HU\0SH"}, "zero byte"),
        (["HUSH"], "secrets is a list"),
    ],
)
def test_secrets_that_cannot_be_variables_are_told_without_their_values(secrets: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        secrets_of("t", secrets, {"A": "1"})
    assert "HU" not in str(caught.value)


def test_secret_params_are_known_by_schema_and_by_name() -> None:
    from airflow.sdk import DAG, Param

    dag = DAG(
        "d",
        schedule=None,
        params={
            "open": 1,
            "pin": Param("HUSH", secret=True),
            "word": Param("HUSH", format="password", type="string"),
            "db": {"host": "h", "password": "HUSH"},
            "api_key": "HUSH",
        },
    )
    given = {name: dag.params[name] for name in dag.params} | {"from_conf_token": "HUSH"}
    context: Any = {"dag": dag, "task": None}
    shown, secret = part_params(context, given)
    assert shown == {"open": 1}
    assert set(secret) == {"pin", "word", "db", "api_key", "from_conf_token"}


def test_references_become_files_on_the_node_also_within_a_stage_list() -> None:
    reference = ValueReference(REF).to_xcom()
    call, files = submission(arguments=[[1, reference]]).call()
    (argument,) = call.arguments
    assert argument.kind == "list"
    assert [item.kind for item in argument.items] == ["value", "file"]
    assert [f"batchwrap-arguments/{item.name}" for item in files] == [argument.items[1].path]
    assert [item.ref for item in files] == [REF]
    (deep,) = submission(arguments=[[[reference], {"plain": 1}]]).call()[0].arguments
    assert [item.kind for item in deep.items] == ["list", "value"]


def test_a_reference_within_a_dict_is_refused_rather_than_handed_over_as_it_is() -> None:
    with pytest.raises(ConfigError, match="too large to travel"):
        submission(arguments=[{"x": [ValueReference(REF).to_xcom()]}]).call()


def test_values_that_are_not_json_are_told() -> None:
    assert plain_values([(1, 2)], "x") == [[1, 2]]
    with pytest.raises(ConfigError, match="cannot be passed as JSON"):
        plain_values([{1, 2}], "args")
    with pytest.raises(ConfigError, match="cannot be passed as JSON"):
        plain_values([float("nan")], "args")


@pytest.mark.parametrize(
    ("name", "pattern", "same"),
    [
        ("1_a/x.csv", "**/*", True),
        ("1_a/deep/x.csv", "**/*.csv", True),
        ("1_a/x.csv", "1_a/*", True),
        ("1_a/deep/x.csv", "1_a/*", False),
        ("1_a/deep/x.csv", "*.csv", True),
        ("1_a/x.csv", "1_*.csv", False),
        ("1_a/x.csv", "**/x.???", True),
    ],
)
def test_patterns_choose_result_files(name: str, pattern: str, same: bool) -> None:
    assert _matches(name, pattern) is same
