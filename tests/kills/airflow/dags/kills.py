"""One step between a pool's set-up and its teardown, which the tests kill things around."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, ExceptionRetryPolicy
from airflow.sdk.definitions.retry_policy import RetryAction, RetryRule
from holds import HeldSetUp, HeldStep, NotingEnd, note_failure, note_retry  # type: ignore[import-not-found]

from airflow_batchwrap.exceptions import ConfigError, PoolError, TryAgain

RETRIES = 2  # edited by the tests

# The package's own policy, without its pause of half a minute.
policy = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=TryAgain, action=RetryAction.RETRY, retry_delay=timedelta(seconds=1), reason="service"),
        RetryRule(exception=[ConfigError, PoolError], action=RetryAction.FAIL, reason="set-up"),
    ]
)

with DAG(
    "kills",
    schedule=None,
    max_active_runs=50,
    params={"folder": "", "phase": "", "inline_wait": "0 s", "fails": False},
    default_args={
        "retry_delay": timedelta(seconds=0.5),
        "retry_policy": policy,
        "on_retry_callback": note_retry,
        "on_failure_callback": note_failure,
    },
):
    set_up = HeldSetUp(
        task_id="set_up", steps="steps", pool_config={"target_dedicated_nodes": 1}, retries=2, poll_interval="1 s"
    )
    step = HeldStep(
        task_id="step",
        step="1_step.py",
        workspace=set_up.output,
        args=["{{ params.folder }}"],
        inline_wait="{{ params.inline_wait }}",
        poll_interval="2 s",
        retries=RETRIES,
    )
    clean_up = NotingEnd(task_id="clean_up", workspace=set_up.output, retries=2)
    set_up >> step >> clean_up.as_teardown(setups=set_up, on_failure_fail_dagrun=True)
