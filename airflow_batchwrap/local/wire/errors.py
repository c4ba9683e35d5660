"""Every error the service answers with: code, status and text in one place."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.wire import times

#: Status and sentence of each Batch error code, as the real service was recorded to say it, or else as documented
#: (https://learn.microsoft.com/rest/api/batchservice/batch-status-and-error-codes). What is wrong in a single case
#: stands beside the sentence, as the value `Reason`.
CODES: dict[str, tuple[int, str]] = {
    "ApplicationNotFound": (404, "The specified application does not exist."),
    "AuthenticationFailed": (
        403,
        "Server failed to authenticate the request. Check the value of the Authorization header and its signature.",
    ),
    # As seen at https://github.com/Azure/BatchExplorer/issues/2203
    "AuthorizationFailure": (403, "This request is not authorized to perform this operation."),
    "AutoScaleFormulaTooLong": (400, "The autoscale formula is too long."),
    "AutoScalingFormulaSyntaxError": (400, "The specified auto-scaling formula has a syntax error."),
    "ConditionNotMet": (412, "The condition specified using HTTP conditional header(s) is not met."),
    "FileNotFound": (404, "The specified file does not exist."),
    "CloudServiceConfigurationRetired": (
        400,
        "CloudServiceConfiguration pools are retired as of 2/29/2024, and new pools of this type cannot be added",
    ),
    "InvalidApplicationPackageReferences": (
        409,
        "One or more of the specified application package references are invalid.",
    ),
    "InvalidAutoScalingSettings": (400, "The specified auto-scaling settings are not valid."),
    "InvalidHeaderValue": (400, "The value for one of the HTTP headers is not in the correct format."),
    "InvalidHost": (400, "The Host header does not name this service."),
    "InvalidPropertyValue": (400, "The value provided for one of the properties in the request body is invalid."),
    "InvalidQueryParameterValue": (
        400,
        "Value for one of the query parameters specified in the request URI is invalid.",
    ),
    "InvalidRange": (416, "The range specified is invalid for the current size of the resource."),
    "InvalidRequestBody": (400, "The specified Request Body is not syntactically valid."),
    "InvalidUri": (400, "The requested URI does not represent any resource on the server."),
    "InternalError": (500, "Server encountered an internal error. Please try again after some time."),
    "JobBeingDeleted": (409, "The specified job has been marked for deletion and is being garbage collected."),
    "JobBeingTerminated": (409, "The specified job is being terminated."),
    "JobCompleted": (409, "The specified job is already in a completed state."),
    "JobDisabled": (409, "The specified job is disabled."),
    "JobExists": (409, "The specified job already exists."),
    "JobNotActive": (409, "The specified job is not in active state."),
    "JobNotFound": (404, "The specified job does not exist."),
    "JobPreparationTaskNotSpecified": (409, "The specified job does not have job preparation task."),
    "JobScheduleBeingDeleted": (409, "The specified job schedule has been marked for deletion and is being reclaimed."),
    "JobScheduleBeingTerminated": (409, "The specified job schedule is being terminated."),
    "JobScheduleCompleted": (409, "The specified job schedule is already in completed state."),
    "JobScheduleDisabled": (409, "The specified job schedule is disabled."),
    "JobScheduleExists": (409, "The specified job schedule already exists."),
    "JobScheduleNotFound": (404, "The specified job schedule does not exist."),
    "JobScheduleWithSameIdExists": (
        409,
        "A job schedule with the specified job id exists. Job and job schedule cannot have the same id.",
    ),
    "JobWithSameIdExists": (
        409,
        "A job with the specified job schedule id exists. Job and job schedule cannot have the same id.",
    ),
    "ActiveJobAndScheduleQuotaReached": (409, "The active job and schedule quota for the account has been reached."),
    "MissingRequiredHeader": (400, "A required HTTP header was not specified."),
    "MissingRequiredProperty": (400, "A required property was not specified in the request body."),
    "MissingRequiredQueryParameter": (400, "A required query parameter was not specified for this request."),
    "NodeAlreadyInTargetSchedulingState": (409, "The specified node is already in the target scheduling state."),
    "NodeBeingCreated": (409, "The specified node is being created."),
    "NodeBeingRebooted": (409, "The specified node is being rebooted."),
    "NodeBeingReimaged": (409, "The specified node is being reimaged."),
    "NodeBeingStarted": (409, "The specified node is being started."),
    "NodeNotFound": (404, "The specified node does not exist."),
    "NodeStateUnusable": (409, "The state of the specified node is unusable."),
    "NodeUserExists": (409, "The specified node user already exists."),
    "NodeUserNotFound": (404, "The specified node user does not exist."),
    "NotImplemented": (501, "The local Batch service does not implement this."),
    "OperationInvalidForCurrentState": (
        409,
        "The specified operation is not valid for the current state of the resource.",
    ),
    "OperationNotValidOnNode": (409, "The specified operation is not valid on the node."),
    "OperationNotValidOnPool": (409, "The specified operation is not valid on the pool."),
    "OutOfRangeQueryParameterValue": (
        400,
        "A query parameter specified in the request URI is outside the permissible range.",
    ),
    "PoolBeingDeleted": (409, "The specified pool has been marked for deletion and is being reclaimed."),
    "PoolBeingResized": (409, "The specified pool is being resized."),
    "PoolExists": (409, "The specified pool already exists."),
    "PoolNotFound": (404, "The specified pool does not exist."),
    "PoolUsageMetricAPIRetired": (400, "Pool list usage metrics API was retired on 09/30/2024"),
    "PoolQuotaReached": (409, "The Batch account pool quota has been reached."),
    "RequestBodyTooLarge": (413, "The request body is too large and exceeds the maximum permissible limit."),
    "ResourceNotFound": (404, "The specified resource does not exist."),
    "ServerBusy": (503, "The server is currently unable to receive requests. Please retry your request."),
    "TaskCompleted": (409, "The specified task is already in a completed state."),
    "TaskExists": (409, "The specified task already exists."),
    "TaskFilesCleanedup": (409, "The files of the specified task are cleaned up."),
    "TaskFilesUnavailable": (409, "The files of the specified task are unavailable."),
    "TaskIdSameAsJobPreparationTask": (409, "The specified task id is same as the job preparation task."),
    "TaskIdSameAsJobReleaseTask": (409, "The specified task id is same as the job release task."),
    "TaskNotCompleted": (
        409,
        "The specified task is not in a completed state, and the requested operation can be performed only on "
        "completed tasks.",
    ),
    "TaskNotFound": (404, "The specified task does not exist."),
    "TaskSucceeded": (
        409,
        "The specified task has already completed successfully, and the requested operation cannot be performed on "
        "successful tasks.",
    ),
    "TaskDependencyListTooLong": (400, "The ids a task depends on are longer than 64000 characters in all."),
    "TaskDependencyRangesTooLong": (400, "The list of id ranges a task depends on is too long."),
    "TaskDependenciesNotSpecifiedOnJob": (400, "The job does not have usesTaskDependencies set."),
    "TooManyRequests": (429, "There are too many requests. Try again later."),
    "TooManyEnableAutoScaleRequests": (503, "Too many Enable Pool AutoScale requests are issued on the pool."),
    "UnsupportedHttpVerb": (405, "The resource doesn't support the specified HTTP verb."),
    "UnsupportedQueryParameter": (400, "One of the query parameters specified in the request URI is not supported."),
    "UnsupportedRequestVersion": (400, "The specified request version is not supported."),
}


#: Where a detail goes: the name of the value beside the message, `Reason` for all others; None for the message itself,
#: where the error is none of Azure's.
_DETAIL = {"AuthenticationFailed": "AuthenticationErrorDetail", "InternalError": None, "NotImplemented": None}


class BatchError(Exception):
    """An answer that is an error.

    :param code: one of `CODES`.
    :param detail: what is wrong in this case; Azure shows it as a value beside the code's own sentence.
    :param values: named values shown beside the message.
    :param status: an HTTP status other than the code's own (304 for an unmet condition on GET).
    :param retry_after: when to try again, in seconds.
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        values: dict[str, str] | None = None,
        status: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.code = code
        self.status, sentence = CODES[code]
        if status is not None:
            self.status = status
        name = _DETAIL.get(code, "Reason")
        self.sentence = detail if detail and name is None else sentence
        self.values = dict(values or {})
        if detail and name:
            self.values.setdefault(name, detail)
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if self.status == 401:
            # As an HTTP server must (RFC 9110, 15.5.2).
            self.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
        super().__init__(f"{code}: {detail or self.sentence}")

    def body(self, request_id: str, base_url: str = "") -> dict[str, Any]:
        """The error as Batch writes it, with the request's id and the time in the message.

        :param request_id: the id given to this request.
        :param base_url: the service's own address, for the metadata link.
        :return: the JSON body.
        """
        return {
            "odata.metadata": f"{base_url}/$metadata#Microsoft.Azure.Batch.Protocol.Entities.Container.errors/@Element",
            **self.inner(request_id),
        }

    def inner(self, request_id: str) -> dict[str, Any]:
        """The error as it stands inside another answer (the result of one task of a collection).

        :param request_id: the id given to this request.
        :return: code, message and values.
        """
        text = f"{self.sentence}\nRequestId:{request_id}\nTime:{times.iso7(times.now())}"
        answer: dict[str, Any] = {"code": self.code, "message": {"lang": "en-US", "value": text}}
        if self.values:
            answer["values"] = [{"key": key, "value": value} for key, value in self.values.items()]
        return answer
