"""What Airflow tries again, and when."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from airflow.sdk import ExceptionRetryPolicy
from airflow.sdk.definitions.retry_policy import RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_batchwrap.exceptions import ConfigError, NoCapacity, PoolError, StepFailed, TryAgain

if TYPE_CHECKING:
    from airflow.sdk import Context

OWN_RETRIES = 2  # of a task that has none, for what is not the step's fault
OWN_DELAY = timedelta(seconds=30)


@cache
def retry_policy(*, steps_too: bool = True) -> ExceptionRetryPolicy:
    """Return what to try again: what may go better later, not a wrong set-up; a step's failure as ``retries`` says.

    :param steps_too: whether the retries are meant for the step's own failures as well.
    """
    rules = [
        RetryRule(
            exception=NoCapacity,
            action=RetryAction.DEFAULT,
            reason="There is no room for now: retries and retry_delay say how often, and when, to ask again",
        ),
        RetryRule(
            exception=TryAgain,
            action=RetryAction.RETRY,
            retry_delay=OWN_DELAY,
            reason="The node or the service failed, not the step",
        ),
        RetryRule(
            exception=[ConfigError, PoolError],
            action=RetryAction.FAIL,
            reason="The set-up has to be mended first",
        ),
    ]
    if not steps_too:
        never = "The step failed, and the task has no retries for that"
        rules.append(RetryRule(exception=[StepFailed, AirflowTaskTimeout], action=RetryAction.FAIL, reason=never))
    return ExceptionRetryPolicy(rules=rules)


def is_tried_again(error: BaseException, context: Context) -> bool:
    """Return whether another try of the task follows that goes on where this one stopped.

    Airflow asks the task's retry policy after us: what it will answer is asked for here.
    """
    ti, policy = context["ti"], context["task"].retry_policy
    if not isinstance(error, TryAgain) or ti.try_number > ti.max_tries:  # the last try's number is one more
        return False
    if policy is None:
        return True
    try:
        decision = policy.evaluate(error, ti.try_number, ti.max_tries, context)
    except Exception:  # Airflow ignores a policy that fails
        return True
    return decision.action is not RetryAction.FAIL
