"""Every error the service answers with: code, status and text in one place."""

from __future__ import annotations

from typing import Any

from airflow_batchwrap.local.wire import times

#: Status and sentence of each documented Batch error code (Learn: "Batch status and error codes").
CODES: dict[str, tuple[int, str]] = {
    "ApplicationNotFound": (404, "The application does not exist."),
    "AuthenticationFailed": (
        403,
        "Server failed to authenticate the request. Check the value of the Authorization header and its signature.",
    ),
    # As seen at https://github.com/Azure/BatchExplorer/issues/2203
    "AuthorizationFailure": (403, "This request is not authorized to perform this operation."),
    "AutoScaleFormulaTooLong": (400, "The autoscale formula is too long."),
    "AutoScalingFormulaSyntaxError": (400, "The autoscale formula cannot be read."),
    "ConditionNotMet": (412, "The condition given by a conditional header is not met."),
    "FileNotFound": (404, "The file does not exist."),
    "InvalidApplicationPackageReferences": (
        409,
        "An application package does not exist, or no version is given and the application has no default one.",
    ),
    "InvalidAutoScalingSettings": (400, "The autoscale settings do not fit together."),
    "InvalidHeaderValue": (400, "The value of one of the HTTP headers is not in the correct format."),
    "InvalidHost": (400, "The Host header does not name this service."),
    "InvalidPropertyValue": (400, "The value of a property in the request body is not valid."),
    "InvalidQueryParameterValue": (400, "The value of a query parameter is not valid."),
    "InvalidRange": (416, "The range is not valid for the current size of the file."),
    "InvalidRequestBody": (400, "The request body is not valid."),
    "InvalidUri": (400, "The requested URI does not represent any resource on the server."),
    "InternalError": (500, "The server met an internal error."),
    "JobBeingDeleted": (409, "The job is being deleted."),
    "JobBeingTerminated": (409, "The job is being terminated."),
    "JobCompleted": (409, "The job is already completed."),
    "JobDisabled": (409, "The job is already disabled."),
    "JobExists": (409, "A job of this id exists already."),
    "JobNotActive": (409, "The job is not active."),
    "JobNotFound": (404, "The job does not exist."),
    "JobPreparationTaskNotSpecified": (409, "The job has no job preparation task."),
    "JobScheduleBeingDeleted": (409, "The job schedule is being deleted."),
    "JobScheduleBeingTerminated": (409, "The job schedule is being terminated."),
    "JobScheduleCompleted": (409, "The job schedule is already completed."),
    "JobScheduleDisabled": (409, "The job schedule is already disabled."),
    "JobScheduleExists": (409, "A job schedule of this id exists already."),
    "JobScheduleNotFound": (404, "The job schedule does not exist."),
    "JobScheduleWithSameIdExists": (409, "A job schedule has this id; a job and a job schedule cannot share one."),
    "JobWithSameIdExists": (409, "A job has this id; a job and a job schedule cannot share one."),
    "ActiveJobAndScheduleQuotaReached": (409, "The account has as many active jobs and job schedules as it may."),
    "MissingRequiredProperty": (400, "A required property is missing from the request body."),
    "MissingRequiredQueryParameter": (400, "A required query parameter is missing."),
    "NodeAlreadyInTargetSchedulingState": (409, "Scheduling on the node is so already."),
    "NodeBeingCreated": (409, "The node is being created."),
    "NodeBeingRebooted": (409, "The node is being rebooted."),
    "NodeBeingReimaged": (409, "The node is being reimaged."),
    "NodeBeingStarted": (409, "The node is being started."),
    "NodeNotFound": (404, "The node does not exist."),
    "NodeStateUnusable": (409, "The node is unusable."),
    "NodeUserExists": (409, "The node has a user of this name already."),
    "NodeUserNotFound": (404, "The node has no user of this name."),
    "NotImplemented": (501, "The local Batch service does not implement this."),
    "OperationInvalidForCurrentState": (409, "The operation is not valid in the current state."),
    "OperationNotValidOnNode": (409, "The operation is not valid on the node."),
    "OperationNotValidOnPool": (409, "The operation is not valid on the pool."),
    "OutOfRangeQueryParameterValue": (400, "The value of a query parameter is out of range."),
    "PoolBeingDeleted": (409, "The pool is being deleted."),
    "PoolBeingResized": (409, "The pool is being resized."),
    "PoolExists": (409, "A pool of this id exists already."),
    "PoolNotFound": (404, "The pool does not exist."),
    "PoolQuotaReached": (409, "The account has as many pools as it may."),
    "RequestBodyTooLarge": (413, "The request body is larger than the service takes."),
    "ResourceNotFound": (404, "The resource does not exist."),
    "ServerBusy": (503, "The service is too busy to answer. Try again later."),
    "TaskCompleted": (409, "The task is already completed."),
    "TaskExists": (409, "A task of this id exists already in this job."),
    "TaskFilesCleanedup": (409, "The task's files are gone: its retention time is over, or its node was reimaged."),
    "TaskFilesUnavailable": (409, "The task has not run yet, or has no files."),
    "TaskIdSameAsJobPreparationTask": (409, "The id is that of the job preparation task."),
    "TaskIdSameAsJobReleaseTask": (409, "The id is that of the job release task."),
    "TaskNotCompleted": (409, "The task is not completed."),
    "TaskNotFound": (404, "The task does not exist."),
    "TaskSucceeded": (409, "The task has succeeded."),
    "TaskDependencyListTooLong": (400, "The ids a task depends on are longer than 64000 characters in all."),
    "TaskDependencyRangesTooLong": (400, "The list of id ranges a task depends on is too long."),
    "TaskDependenciesNotSpecifiedOnJob": (400, "The job does not have usesTaskDependencies set."),
    "TooManyRequests": (429, "There are too many requests. Try again later."),
    "TooManyEnableAutoScaleRequests": (503, "Autoscale of one pool can be enabled once in 30 seconds."),
    "UnsupportedHttpVerb": (405, "The resource does not support this HTTP verb."),
    "UnsupportedQueryParameter": (400, "A query parameter is not supported for this operation."),
    "UnsupportedRequestVersion": (400, "The api-version is not supported by this service."),
}


class BatchError(Exception):
    """An answer that is an error.

    :param code: one of `CODES`.
    :param detail: a sentence to take the place of the code's own.
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
        self.sentence = detail or sentence
        self.values = values or {}
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if self.status == 401:
            # As an HTTP server must (RFC 9110, 15.5.2).
            self.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
        super().__init__(f"{code}: {self.sentence}")

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
