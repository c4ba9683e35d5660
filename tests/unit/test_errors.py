"""Azure's errors become ours: what to do next, the problem and the remedy, and no secret."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core import exceptions as azure
from azure.identity import CredentialUnavailableError

from airflow_batchwrap.exceptions import AccessDenied, ConfigError, NoCapacity, Throttled
from airflow_batchwrap.hooks.errors import scrub, translate, translated

SECRET = "c2VjcmV0"
CHAIN = """DefaultAzureCredential failed to retrieve a token from the included credentials.
Attempted credentials:
\tOne: not there.
Visit https://aka.ms/somewhere to troubleshoot.
\tTwo: cut off.
To mitigate this issue, please refer to https://aka.ms/elsewhere."""


def response(kind: Any, status: int, code: str, text: str = "Something is wrong.\nRequestId:1\nTime:2") -> Any:
    """Return an error as Azure's clients raise it for an answer of the service."""
    error = kind(message=text)
    error.status_code = status
    details = [SimpleNamespace(code="Detail", message=f"https://h/c/b?sv=1&sig={SECRET}")]
    error.error = SimpleNamespace(code=code, message=text, details=details)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (response(azure.ResourceNotFoundError, 404, "JobNotFound"), ConfigError, "clear the set-up task"),
        (response(azure.ResourceExistsError, 409, "JobCompleted"), ConfigError, "clear the set-up task"),
        (response(azure.HttpResponseError, 400, "InvalidPropertyValue"), ConfigError, "connection 'my_conn'"),
        (response(azure.ClientAuthenticationError, 401, "AuthenticationFailed"), AccessDenied, "name and key"),
        (response(azure.HttpResponseError, 403, "AuthorizationFailure"), AccessDenied, "roles of the identity"),
        (azure.ClientAuthenticationError("no route"), Throttled, "could not sign in to the Batch account: no route"),
        (CredentialUnavailableError("none here"), Throttled, "none here"),
        (response(azure.ClientAuthenticationError, 500, "", "down"), Throttled, "down"),
        (response(azure.ClientAuthenticationError, 429, "", "too many"), Throttled, "too many"),
        (azure.ClientAuthenticationError(CHAIN), Throttled, "One: not there; Two: cut off. Nobody"),
        (response(azure.ResourceExistsError, 409, "PoolQuotaReached"), NoCapacity, "quota of pools"),
        (response(azure.ResourceExistsError, 409, "ActiveJobAndScheduleQuotaReached"), NoCapacity, "active jobs"),
        (response(azure.ResourceExistsError, 409, "AutoPoolCreationFailedWithQuotaReached"), NoCapacity, "is used up"),
        (response(azure.HttpResponseError, 413, "RequestEntityTooLarge"), ConfigError, "32,768 characters"),
        (response(azure.HttpResponseError, 429, "TooManyRequests"), Throttled, "busy or failing"),
        (response(azure.HttpResponseError, 503, "ServerBusy"), Throttled, "busy or failing"),
        (response(azure.HttpResponseError, 500, "OperationTimedOut"), Throttled, "busy or failing"),
        (azure.ServiceRequestError(f"no route to https://h/?sig={SECRET}"), Throttled, "does not answer"),
        (azure.ServiceResponseError("cut off"), Throttled, "does not answer"),
    ],
)
def test_what_becomes_of_an_error(error: Exception, kind: type[Exception], said: str) -> None:
    told = translate(error, "make thing 'x'", "the Batch account", "my_conn")
    assert type(told) is kind
    assert said in str(told)
    assert str(told).startswith("Could not make thing 'x': ")
    assert SECRET not in str(told)
    assert ".." not in str(told).replace("?...", "").replace("=...", "")
    assert "RequestId" not in str(told)


def test_the_original_is_not_chained() -> None:
    # Airflow logs whole chains, and its text may hold an address with a signature.
    with pytest.raises(ConfigError) as told, translated("read", "the Batch account", "c"):
        raise response(azure.HttpResponseError, 400, "Bad", f"https://h/?sig={SECRET}")
    assert told.value.__suppress_context__
    assert told.value.__cause__ is None


@pytest.mark.parametrize("text", ["?" * 1_000_000, "?a" * 500_000, "sig=" * 250_000, "?" * 500_000 + "="])
def test_text_is_scrubbed_in_one_reading(text: str) -> None:
    began = time.process_time()
    scrub(text)
    # A pattern that looked for the end anew from each question mark would take an hour.
    assert time.process_time() - began < 5
