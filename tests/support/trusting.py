"""Make this process the local service's managed identity, and have it trust the service's authority.

trust(monkeypatch, runner.launch(folder, ["--tls"]))
"""

from __future__ import annotations

import pytest
from aiohttp import connector

from airflow_batchwrap.local.runner import LocalService


def trust(monkeypatch: pytest.MonkeyPatch, service: LocalService) -> None:
    """Set the variables that `service.identity()` gives, for the length of a test.

    aiohttp reads ``SSL_CERT_FILE`` once, when it is first imported: earlier than this, if another test came first. So
    its context is told of the authority as well.
    """
    for name, value in service.identity().items():
        monkeypatch.setenv(name, value)
    connector._SSL_CONTEXT_VERIFIED.load_verify_locations(service.authority)
