"""Count the requests that a client of Azure sends."""

from __future__ import annotations

from typing import Any

from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import SansIOHTTPPolicy

from airflow_batchwrap import metrics

_BUSY = (429, 503)


class RequestCounter(SansIOHTTPPolicy[Any, Any]):
    """Count each request as it is sent, for blocking and async clients: give it as ``per_retry_policies``."""

    def on_request(self, request: PipelineRequest[Any]) -> None:
        """See a request on its way."""
        metrics.count(metrics.REQUESTS, method=str(request.http_request.method))

    def on_response(self, request: PipelineRequest[Any], response: PipelineResponse[Any, Any]) -> None:
        """See its answer."""
        if (status := response.http_response.status_code) in _BUSY:
            metrics.count(metrics.THROTTLED, status=str(status))
