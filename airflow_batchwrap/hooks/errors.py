"""Azure's errors become ours: a type for each thing that the caller may do next, and no secret in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_batchwrap.exceptions import AccessDenied, BatchWrapError, ConfigError, NoCapacity, Throttled

# What a used-up quota is of: codes of answers, and of resize errors.
# https://learn.microsoft.com/rest/api/batchservice/batch-status-and-error-codes
# https://learn.microsoft.com/troubleshoot/azure/hpc/batch/azure-batch-pool-resizing-failure
_QUOTA = {
    "accountcorequotareached": "dedicated cores",
    "accountlowprioritycorequotareached": "spot cores",
    "accountspotcorequotareached": "spot cores",
    "accountvmseriescorequotareached": "cores of this VM series",
    "poolquotareached": "pools",
    "activejobandschedulequotareached": "active jobs and schedules",
}
# Azure has no machines for now, or does not say why it could not bring them. Azure's own spelling of the time-out is
# AllocationTimedout, its clients' is AllocationTimedOut: the case is not minded.
_NO_MACHINES = {"allocationfailed", "allocationtimedout", "overconstrainedallocationrequesterror"}
# A failed allocation that no time mends: the request itself is wrong (the same page, scenarios 1 and 2).
_WRONG_REQUEST = re.compile(r'"code":\s*"BadRequest"|subnet has delegation', re.IGNORECASE)
# What to do about codes that a person can meet; Azure's own texts name the problem alone.
_REMEDIES = {
    "JobNotFound": "The run's job was deleted: clear the set-up task, which opens a new one.",
    "JobBeingDeleted": "The run's job was deleted: clear the set-up task, which opens a new one.",
    "JobBeingTerminated": "The run's job has ended: clear the set-up task, which opens a new one.",
    "JobCompleted": "The run's job has ended: clear the set-up task, which opens a new one.",
    "JobDisabled": "Somebody has disabled the run's job: enable it, or clear the set-up task.",
    "PoolNotFound": "Check pool_id, or give a pool_config to have a pool created.",
    "ContainerBeingDeleted": "Wait half a minute until the container is gone, or use another one.",
    "AuthorizationFailure": "Check the storage account's firewall.",
    "RequestEntityTooLarge": "Pass fewer files: a Batch task's resource files may take 32,768 characters in all.",
    "RequestBodyTooLarge": "Pass large values from step to step or as inputs, not as arguments.",
}
_BUSY = {408, 429, 500, 502, 503, 504}
_DENIED = {401, 403}
# Lines of azure-identity's errors that give no reason.
_ADVICE = ("Visit https://", "To mitigate this issue", "Attempted credentials:")


def is_capacity(code: str, text: str = "") -> bool:
    """Return whether a code of an answer or of a resize error says that there is no room for now.

    :param code: such as ``AccountCoreQuotaReached`` or ``AllocationFailed``.
    :param text: Azure's words: a failed allocation may say that the request can never be met.
    """
    code = code.lower()
    if code.endswith("quotareached"):
        return True
    return code in _NO_MACHINES and _WRONG_REQUEST.search(text) is None


def scrub(text: str) -> str:
    """Return a text without what could be a SAS: the query of every URL and every signature is cut out."""
    # What follows a question mark is found as a whole, and looked at then: each text is read once, however it is made.
    text = re.sub(r"\?[^\s'\"<>)]*", lambda query: "?..." if "=" in query[0] else query[0], text)
    return re.sub(r"(?i)\b(sig|signature|AccountKey|SharedAccessSignature)=[^\s&;'\"<>)]+", r"\1=...", text)


def code_of(error: BaseException) -> str:
    """Return Azure's error code, such as ``PoolNotFound``; empty where the error has none.

    The status alone is not enough: the Batch client makes every 409 one exception type, and with ``If-Match`` every
    error another.
    """
    for holder in (getattr(error, "error", None), error):
        code = getattr(holder, "code", None) or getattr(holder, "error_code", None)
        if code:
            return str(getattr(code, "value", code))
    return ""


def sentence_of(error: BaseException) -> str:
    """Return the first line of Azure's own message, scrubbed: what follows is ids and times."""
    detail = getattr(getattr(error, "error", None), "message", None) or getattr(error, "message", None) or str(error)
    if not isinstance(detail, str):
        detail = str(detail)
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    return scrub(lines[0])[:500] if lines else type(error).__name__


def details_of(error: BaseException) -> str:
    """Return the name-and-value pairs that Batch adds to some errors, as one line."""
    pairs = []
    for item in getattr(getattr(error, "error", None), "details", None) or ():
        key, value = getattr(item, "code", None), getattr(item, "message", None)
        if key and value:
            pairs.append(f"{key}: {scrub(str(value))}")
    return "; ".join(pairs)[:1000]


def translate(error: Exception, doing: str, where: str, conn_id: str) -> BatchWrapError:
    """Return our error for one of Azure's.

    :param doing: what was being done, as "create pool 'p1'".
    :param where: "the Batch account" or "the storage account".
    :param conn_id: the Airflow connection to look at.
    """
    from azure.core import exceptions as azure

    said = sentence_of(error).rstrip(".")
    code = code_of(error)
    status = getattr(error, "status_code", None)
    extra = details_of(error)
    said = f"{said} ({extra})" if extra else said
    if isinstance(error, azure.ServiceRequestError | azure.ServiceResponseError) and status is None:
        return Throttled(
            f"Could not {doing}: {where} of connection {conn_id!r} does not answer: {said}. "
            "Check that the address in the connection is right and that the service is up."
        )
    if isinstance(error, azure.ClientAuthenticationError) and status not in _DENIED:
        return Throttled(
            f"Could not {doing}: the identity of connection {conn_id!r} could not sign in to {where}: "
            f"{_sign_in_reasons(error)}. Nobody has refused it, so this may pass. If it does not: check that this "
            "machine has a managed identity or the variables of another one (AZURE_CLIENT_ID and so on), "
            "and that the sign-in can be reached from here.",
            _retry_after(error),
        )
    if status in _DENIED:
        return AccessDenied(
            f"Could not {doing}: {where} refused the credentials of connection {conn_id!r}"
            f" ({code or status}): {said}. Check the account name and key, or the roles of the identity, there;"
            " a clock that is off by more than 15 minutes gives the same answer."
        )
    if status in _BUSY:
        message = f"Could not {doing}: {where} is busy or failing ({code or status}): {said}. Try again later."
        return Throttled(message, _retry_after(error))
    if is_capacity(code):
        quota = _QUOTA.get(code.lower(), "what it asks for")
        return NoCapacity(
            f"Could not {doing}: the account's quota of {quota} is used up ({code}): {said}. "
            "Wait until others have ended, delete what is no longer needed, or ask Azure for a higher quota."
        )
    label = code or status or type(error).__name__
    remedy = _REMEDIES.get(code) or f"Check what was asked for, and connection {conn_id!r}."
    return ConfigError(f"Could not {doing}: {where} answered {label}: {said}. {remedy}")


def _sign_in_reasons(error: BaseException) -> str:
    """Return why no token could be had: of a chain of credentials, what each of them says."""
    lines = [line.strip().rstrip(".") for line in str(getattr(error, "message", None) or error).splitlines()]
    return scrub("; ".join(line for line in lines if line and not line.startswith(_ADVICE)))[:1500]


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds that an answer's ``Retry-After`` asks for; None where it has none, or a date."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None


@contextmanager
def translated(doing: str, where: str, conn_id: str) -> Iterator[None]:
    """Translate what Azure raises inside; errors that are ours already pass through.

    The original is not chained: its text may hold an address with a SAS, and Airflow logs whole chains.
    """
    from azure.core.exceptions import AzureError

    try:
        yield
    except BatchWrapError:
        raise
    except AzureError as error:
        raise translate(error, doing, where, conn_id) from None
