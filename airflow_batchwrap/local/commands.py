"""The command line: serve, start, stop, status."""

from __future__ import annotations

import base64
import logging
import os
import re
import ssl
from pathlib import Path
from typing import Annotated

import typer

from airflow_batchwrap.local import hosts, runner
from airflow_batchwrap.local import tls as certificates
from airflow_batchwrap.local.faults import Faults, FaultsError
from airflow_batchwrap.local.home import ACCOUNT, DEV_KEY, Home, HomeError, is_published
from airflow_batchwrap.local.identity import ROLES
from airflow_batchwrap.local.pace import PROFILES, Pace
from airflow_batchwrap.local.quotas import Quotas, QuotasError
from airflow_batchwrap.local.runner import LocalService
from airflow_batchwrap.local.store import PATIENCE

#: A host name, or an IPv4 or IPv6 address.
_NAME = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+")

app = typer.Typer(no_args_is_help=True, help="The local Azure Batch service.", pretty_exceptions_enable=False)

Data = Annotated[Path, typer.Option(help="Directory for the state, the key and the nodes.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")]
Account = Annotated[str, typer.Option(help="Name of the Batch account.")]
Key = Annotated[str | None, typer.Option(help="Key in base64; by default a random one, kept in the directory.")]
DevKey = Annotated[bool, typer.Option("--dev-key", help="Use the published key: anyone on this machine can run tasks.")]
Host = Annotated[str, typer.Option(help="Address to listen on; one that others reach needs TLS or --plain-http.")]
PlainHttp = Annotated[
    bool,
    typer.Option("--plain-http", help="No TLS where others reach --host: who is on the way reads and changes all."),
]
Name = Annotated[
    list[str] | None, typer.Option(help="One more host name or address by which clients reach the service.")
]
Profile = Annotated[str, typer.Option(help="How long things take: instant, or azure (as observed there).")]
TimeScale = Annotated[
    float, typer.Option(min=0.001, max=1e6, help="Seconds of Azure's time that pass in a second here.")
]
Capacity = Annotated[int | None, typer.Option(min=0, help="Nodes that are to be had, over all pools.")]
FaultSpec = Annotated[str, typer.Option(help="What goes wrong on purpose, such as seed=7,503=0.1,drop=0.02.")]
RequestTime = Annotated[float, typer.Option(min=0.05, help="How long a request may take to arrive, in seconds.")]
Tls = Annotated[bool, typer.Option("--tls", help="Speak TLS, with a certificate of the directory's own authority.")]
Cert = Annotated[Path | None, typer.Option(help="Speak TLS with this certificate (PEM) in place of an own one.")]
CertKey = Annotated[Path | None, typer.Option(help="The private key of --cert (PEM).")]
Trust = Annotated[
    list[Path] | None, typer.Option(help="Certificate of an authority that nodes trust when they transfer files.")
]
Role = Annotated[str, typer.Option(help="What the managed identity may do: contributor, submitter, reader or none.")]
AccessLog = Annotated[Path | None, typer.Option(help="File for a line about each request, without its query.")]
StorePatience = Annotated[
    float, typer.Option(min=0.1, help="How long the state may be not writable before the service ends, in seconds.")
]
Turns = Annotated[
    Path | None, typer.Option(hidden=True, help="File for a line about each turn of the loop that took 10 ms or more.")
]
Quota = Annotated[str, typer.Option(help="What the account may have, such as jobs=10,pools=5,cores=20,spot-cores=8.")]


def _fail(message: object) -> typer.Exit:
    typer.echo(str(message), err=True)
    return typer.Exit(1)


def _key(key: str | None, dev_key: bool) -> str | None:
    if dev_key and key is not None:
        raise _fail("Give --key or --dev-key, not both.")
    return DEV_KEY if dev_key else key


def _reach(host: str, tls: bool, plain_http: bool) -> None:
    if not (hosts.is_loopback(host) or tls or plain_http):
        raise _fail(
            f"Others reach {host}, and a signature covers no body: without TLS, whoever is on the way can change what "
            "runs here. Give --tls, or --cert and --cert-key; or --plain-http if the network is yours alone."
        )


def _published(key: str, host: str) -> None:
    if is_published(base64.b64decode(key)) and not hosts.is_loopback(host):
        raise _fail(f"The published key is not used on {host}: it would let anyone run commands here. Leave it out.")


def _names(names: list[str]) -> list[str]:
    for name in names:
        if not _NAME.fullmatch(name):
            raise _fail(f"--name {name!r} is no host name and no address: give one without a scheme and a port.")
    return names


def _pace(profile: str, scale: float) -> Pace:
    if profile not in PROFILES:
        raise _fail(f"There is no profile {profile!r}: give one of {', '.join(PROFILES)}.")
    return Pace.named(profile, scale)


def _faults(text: str) -> Faults:
    try:
        return Faults.parse(text)
    except FaultsError as error:
        raise _fail(error) from None


def _quotas(text: str) -> Quotas:
    try:
        return Quotas.parse(text)
    except QuotasError as error:
        raise _fail(error) from None


def _check(role: str, tls: bool, cert: Path | None, cert_key: Path | None, trust: list[Path]) -> None:
    if role not in ROLES:
        raise _fail(f"There is no role {role!r}: give one of {', '.join(ROLES)}.")
    if (cert is None) != (cert_key is None):
        raise _fail("Give --cert and --cert-key together: a certificate and its private key.")
    if tls and cert:
        raise _fail("Give --tls or --cert, not both: --tls makes a certificate of its own.")
    for whence, path in [*(("--trust ", path) for path in trust), *(("SSL_CERT_FILE=", path) for path in _private())]:
        try:
            ssl.create_default_context(cafile=path)
        except (OSError, ssl.SSLError):
            raise _fail(f"{whence}{path} holds no certificate that can be read: give a file in PEM.") from None


def _private() -> list[Path]:
    """The authorities that this machine trusts beside the well-known ones, as OpenSSL's own variable says."""
    return [Path(path)] if (path := os.environ.get("SSL_CERT_FILE")) else []


def _tell(service: LocalService) -> None:
    typer.echo(f"{service.url} account {service.account} process {service.pid} data {service.data}")
    if service.authority:
        typer.echo(f"Certificate authority: {service.authority}")
    typer.echo(f"Page: {Home(service.data).page(service.url)}")


@app.command()
def serve(
    data: Data,
    port: Port = 0,
    account: Account = ACCOUNT,
    key: Key = None,
    dev_key: DevKey = False,
    host: Host = "127.0.0.1",
    profile: Profile = "instant",
    time_scale: TimeScale = 1.0,
    capacity: Capacity = None,
    quota: Quota = "",
    faults: FaultSpec = "",
    request_time: RequestTime = 30.0,
    access_log: AccessLog = None,
    tls: Tls = False,
    cert: Cert = None,
    cert_key: CertKey = None,
    trust: Trust = None,
    role: Role = "contributor",
    store_patience: StorePatience = PATIENCE,
    turns: Turns = None,
    name: Name = None,
    plain_http: PlainHttp = False,
) -> None:
    """Serve in the foreground, until SIGINT, SIGTERM or SIGHUP."""
    from airflow_batchwrap.local import serve as serving

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    given = _key(key, dev_key)
    pace = _pace(profile, time_scale)
    wrong = _faults(faults)
    limits = _quotas(quota)
    _check(role, tls, cert, cert_key, trust or [])
    _reach(host, tls or cert is not None, plain_http)
    names = _names(name or [])
    # Databases, logs and all else that this process writes are its user's alone, whatever the shell has asked for.
    before = os.umask(0o077)
    try:
        home = Home.make(data)
        with home.lock():
            kept = home.key(given)
            _published(kept, host)
            files = certificates.own(cert, cert_key) if cert and cert_key else None
            files = certificates.make(home, *hosts.others(host), *names) if tls else files
            listener = serving.listen(host, port)
            address = hosts.url(host, listener.getsockname()[1], "https" if files else "http")
            typer.echo(f"Local Batch service: {address}, account {account}, data {home.path}")
            if files and files.authority:
                typer.echo(f"Certificate authority: {files.authority}")
            # Without the token: what is written here may end in a log.
            typer.echo(f"Page: {address}/ui/ (its address with the token: batchwrap local status --data {home.path})")
            serving.serve(
                home,
                listener,
                host,
                account,
                kept,
                pace=pace,
                capacity=capacity,
                quotas=limits,
                faults=wrong,
                request_time=request_time,
                access_log=access_log,
                tls=files,
                trusted=[path.absolute() for path in (*(trust or ()), *_private())],
                role=role,
                patience=store_patience,
                turns=turns,
                names=names,
            )
    except HomeError as error:
        raise _fail(error) from None
    finally:
        os.umask(before)


@app.command()
def start(
    data: Data,
    port: Port = 0,
    account: Account = ACCOUNT,
    key: Key = None,
    dev_key: DevKey = False,
    host: Host = "127.0.0.1",
    profile: Profile = "instant",
    time_scale: TimeScale = 1.0,
    capacity: Capacity = None,
    quota: Quota = "",
    faults: FaultSpec = "",
    request_time: RequestTime = 30.0,
    access_log: AccessLog = None,
    tls: Tls = False,
    cert: Cert = None,
    cert_key: CertKey = None,
    trust: Trust = None,
    role: Role = "contributor",
    store_patience: StorePatience = PATIENCE,
    name: Name = None,
    plain_http: PlainHttp = False,
) -> None:
    """Serve in the background; return once the service answers."""
    given = _key(key, dev_key)
    _reach(host, tls or cert is not None, plain_http)
    arguments = ["--port", str(port), "--account", account, "--host", host]
    _pace(profile, time_scale)
    arguments += ["--profile", profile, "--time-scale", str(time_scale)]
    _faults(faults)
    arguments += ["--faults", faults, "--request-time", str(request_time), "--store-patience", str(store_patience)]
    _check(role, tls, cert, cert_key, trust or [])
    arguments += ["--role", role, *(["--tls"] if tls else []), *(["--plain-http"] if plain_http else [])]
    arguments += [word for each in _names(name or []) for word in ("--name", each)]
    for option, path in (("--cert", cert), ("--cert-key", cert_key), *(("--trust", each) for each in trust or ())):
        arguments += [] if path is None else [option, str(path.absolute())]
    if access_log:
        arguments += ["--access-log", str(access_log.absolute())]
    _quotas(quota)
    arguments += ["--quota", quota]
    arguments += [] if capacity is None else ["--capacity", str(capacity)]
    try:
        if given is not None and runner.attach(data) is None:
            # By its file, not its command line, which others on this machine can read.
            given = Home.make(data).key(given)
            _published(given, host)
        published = given is not None and is_published(base64.b64decode(given))
        service = runner.launch(data, [*arguments, *(["--dev-key"] if published else [])])
    except (HomeError, runner.LocalServiceError) as error:
        raise _fail(error) from None
    _tell(service)


@app.command()
def stop(data: Data) -> None:
    """Stop the service that runs on a data directory, with all of its tasks."""
    service = runner.attach(data)
    if service is None:
        raise _fail(f"No local Batch service runs on {data}.")
    try:
        service.stop()
    except runner.LocalServiceError as error:
        raise _fail(error) from None
    typer.echo(f"Stopped {service.url}.")


@app.command()
def status(data: Data) -> None:
    """Say whether a service runs on a data directory; the exit code is 1 where none does."""
    service = runner.attach(data)
    if service is None:
        raise _fail(f"No local Batch service runs on {data}.")
    _tell(service)
