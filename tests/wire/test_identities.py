"""Managed identities: the token endpoint that azure-identity follows, and what Batch says of its tokens."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from azure.batch import BatchClient
from azure.batch import models as m
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.identity import DefaultAzureCredential, ManagedIdentityCredential
from azure.identity.aio import ManagedIdentityCredential as AsyncManagedIdentityCredential

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.home import Home
from airflow_batchwrap.local.identity import Identity
from airflow_batchwrap.local.runner import LocalService
from airflow_batchwrap.local.wire.tokens import Authority
from tests.support.trusting import trust

if TYPE_CHECKING:
    from tests.support.wire import Wire

BATCH = "https://batch.core.windows.net/"
Launch = Callable[..., LocalService]


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A service over TLS, for all tests that need no other."""
    data: Path = tmp_path_factory.mktemp("tls")
    running = runner.launch(data / "data", ["--tls"])
    yield running
    running.stop()
    assert "Traceback" not in (running.data / "service.log").read_text()


@pytest.fixture
def secure(over_tls: LocalService, monkeypatch: pytest.MonkeyPatch) -> LocalService:
    """The service, whose identity is that of this process."""
    trust(monkeypatch, over_tls)
    return over_tls


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Starts a service of the test's own, whose identity is that of this process."""
    begun: list[LocalService] = []

    def begin(*arguments: str) -> LocalService:
        begun.append(runner.launch(tmp_path / f"data-{len(begun)}", ["--tls", *arguments]))
        trust(monkeypatch, begun[-1])
        return begun[-1]

    yield begin
    for running in begun:
        running.stop()
        assert "Traceback" not in (running.data / "service.log").read_text()


def ask(service: LocalService, token: str, path: str = "/pools") -> tuple[int, dict[str, Any], str]:
    """Send a token by hand; return status, body and challenge."""
    context = ssl.create_default_context(cafile=service.authority)
    connection = http.client.HTTPSConnection(service.url.removeprefix("https://"), timeout=20, context=context)
    try:
        connection.request("GET", f"{path}?api-version=2025-06-01", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}"), answer.headers.get("WWW-Authenticate", "")
    finally:
        connection.close()


def get_token(service: LocalService, header: str | None = None, host: str | None = None, **query: str) -> Any:
    """Ask the token endpoint by hand; return status and body."""
    given = Identity.of(Home(service.data))
    context = ssl.create_default_context(cafile=service.authority)
    connection = http.client.HTTPSConnection(service.url.removeprefix("https://"), timeout=20, context=context)
    asked = {"api-version": "2019-08-01", "resource": BATCH} | query
    headers = {"X-IDENTITY-HEADER": given.secret if header is None else header} | ({"Host": host} if host else {})
    try:
        connection.request("GET", f"/msi/token?{urlencode({k: v for k, v in asked.items() if v})}", headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_azure_identity_signs_in(secure: LocalService, wire: Wire) -> None:
    with BatchClient(secure.url, DefaultAzureCredential()) as client:
        here = type(wire)(secure, client)
        info = here.run(here.job(here.pool()), "/bin/true").execution_info
    assert info is not None
    assert info.exit_code == 0


async def test_azure_identity_signs_in_where_it_is_async(secure: LocalService) -> None:
    from azure.batch.aio import BatchClient as AsyncBatchClient

    async with AsyncManagedIdentityCredential() as credential, AsyncBatchClient(secure.url, credential) as client:
        assert [image.node_agent_sku_id async for image in client.list_supported_images()]


def test_identity_is_kept_and_not_shown(secure: LocalService) -> None:
    first, again = Identity.of(Home(secure.data)), Identity.of(Home(secure.data))
    assert (first.client, first.secret, first.authority) == (again.client, again.secret, again.authority)
    assert first.secret not in repr(first)
    assert first.authority.key.hex() not in repr(first)
    log = (secure.data / "service.log").read_text()
    assert first.secret not in log


def test_user_assigned_identity_is_named_by_its_client_id(secure: LocalService) -> None:
    own = Identity.of(Home(secure.data)).client
    assert ManagedIdentityCredential(client_id=own).get_token(f"{BATCH}/.default").token
    with pytest.raises(ClientAuthenticationError, match="no identity of this id"):
        ManagedIdentityCredential(client_id="11111111-1111-1111-1111-111111111111").get_token(f"{BATCH}/.default")


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"header": ""}, 401, "X-IDENTITY-HEADER"),
        ({"header": "wrong"}, 401, "X-IDENTITY-HEADER"),
        ({"host": "evil.example"}, 400, "Host"),
        ({"api-version": "2017-09-01"}, 400, "2019-08-01"),
        ({"resource": ""}, 400, "resource"),
    ],
)
def test_token_endpoint_refuses(secure: LocalService, asked: dict[str, str], status: int, told: str) -> None:
    found, body = get_token(secure, **asked)
    assert (found, body["statusCode"]) == (status, status)
    assert told in body["message"]
    assert "access_token" not in body


@pytest.mark.parametrize("audience", [BATCH, f"{BATCH}/"])
def test_audience_has_one_slash_or_two(secure: LocalService, audience: str) -> None:
    own = Identity.of(Home(secure.data))
    token, _ = own.authority.issue(audience, own.client, own.subject, time.time())
    assert ask(secure, token)[0] == 200


def make_wrong(kind: str, own: Identity) -> str:
    """A token with one thing wrong about it."""
    now, authority = time.time(), own.authority
    if kind == "audience":
        return authority.issue("https://storage.azure.com", own.client, own.subject, now)[0]
    if kind == "no slash":
        return authority.issue("https://batch.core.windows.net", own.client, own.subject, now)[0]
    if kind == "expired":
        return authority.issue(BATCH, own.client, own.subject, now - 100, life=50)[0]
    if kind == "early":
        return authority.issue(BATCH, own.client, own.subject, now + 1000)[0]
    if kind == "issuer":
        return Authority("another", authority.key).issue(BATCH, own.client, own.subject, now)[0]
    if kind == "key":
        return Authority(authority.tenant, bytes(32)).issue(BATCH, own.client, own.subject, now)[0]
    token = authority.issue(BATCH, own.client, own.subject, now)[0]
    head, claims, signature = token.split(".")
    if kind == "claims":
        changed = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"oid": "another"}
        claims = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip("=")
        return f"{head}.{claims}.{signature}"
    return {"no token": "", "no parts": "abc", "no signature": f"{head}.{claims}.", "binary": "\xe9.\xe9.\xe9"}[kind]


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("audience", "wrong audience or resource 'https://storage.azure.com'"),
        ("no slash", "exactly match (including forward slash)"),
        ("expired", "is earlier than current UTC time"),
        ("early", "not valid yet"),
        ("issuer", "wrong issuer 'https://sts.windows.net/another/'"),
        ("key", "is invalid"),
        ("claims", "is invalid"),
        ("no token", "is invalid"),
        ("no parts", "is invalid"),
        ("no signature", "is invalid"),
        ("binary", "is invalid"),
    ],
)
def test_token_that_is_wrong_is_refused_in_azures_words(secure: LocalService, kind: str, detail: str) -> None:
    status, body, challenge = ask(secure, make_wrong(kind, Identity.of(Home(secure.data))))
    assert (status, body["code"]) == (401, "AuthenticationFailed")
    assert challenge.startswith("Bearer")
    (value,) = body["values"]
    assert value["key"] == "AuthenticationErrorDetail"
    assert detail in value["value"]


def test_identity_of_nobody_is_not_authorized(secure: LocalService) -> None:
    own = Identity.of(Home(secure.data))
    status, body, _ = ask(secure, own.authority.issue(BATCH, own.client, "another", time.time())[0])
    assert (status, body["code"]) == (403, "AuthorizationFailure")


@pytest.mark.parametrize(
    ("role", "granted"),
    [
        ("contributor", {"read pools", "write pools", "read jobs", "write jobs"}),
        ("submitter", {"read pools", "read jobs", "write jobs"}),
        ("reader", {"read pools", "read jobs"}),
        ("none", set()),
    ],
)
def test_role_grants_what_azures_does(launch: Launch, wire: Wire, role: str, granted: set[str]) -> None:
    service = launch("--role", role)
    found, refused = set(), set()
    with BatchClient(service.url, ManagedIdentityCredential(), retry_total=0) as client:
        calls: dict[str, Callable[[], object]] = {
            "read pools": lambda: list(client.list_pools()),
            "write pools": lambda: client.create_pool(wire.pool_options("p")),
            "read jobs": lambda: list(client.list_jobs()),
            "write jobs": lambda: client.create_job(
                m.BatchJobCreateOptions(id="j", pool_info=m.BatchPoolInfo(pool_id="p"))
            ),
        }
        for name, call in calls.items():
            try:
                call()
                found.add(name)
            except HttpResponseError as error:
                refused.add((error.status_code, error.error.code if error.error else ""))
    assert found == granted
    assert refused <= {(403, "AuthorizationFailure")}


def test_sign_ins_fail_at_their_rate(launch: Launch) -> None:
    service = launch("--faults", "seed=4,sign-in=0.5")
    fates = []
    for _ in range(40):
        try:
            fates.append(get_token(service)[0])
        except (http.client.HTTPException, OSError):
            fates.append(0)
    assert set(fates) == {200, 500, 0}
    assert 10 <= fates.count(200) <= 30


def test_tokens_expire_early(launch: Launch) -> None:
    service = launch("--faults", "expire=1,expire-after=0")
    _, body = get_token(service)
    assert int(body["expires_on"]) > time.time() + 3600
    status, answer, _ = ask(service, body["access_token"])
    assert status == 401
    assert "is earlier than current UTC time" in answer["values"][0]["value"]


def test_token_that_expires_early_is_good_for_a_while(launch: Launch) -> None:
    service = launch("--faults", "expire=1,expire-after=600")
    assert ask(service, get_token(service)[1]["access_token"])[0] == 200
