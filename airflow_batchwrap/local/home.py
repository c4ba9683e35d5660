"""The data directory: its lock, its key, and the note of the service that runs on it."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCOUNT = "batchwraplocal"

#: The published key of ``--dev-key``: known to everybody, so it is worth nothing off this machine.
DEV_KEY = base64.b64encode(b"airflow-batchwrap local Batch service: published development key").decode()

#: The fewest bytes of a key, once decoded: as many as SHA-256 gives. A shorter key weakens the signatures that are made
#: with it (RFC 2104, section 3: https://www.rfc-editor.org/rfc/rfc2104#section-3).
SHORTEST_KEY = 32

#: Characters of the page's token: 32 bytes in base64.
TOKEN_LENGTH = 43


class HomeError(Exception):
    """The data directory cannot be used; the message says why and what to do."""


def decode_key(text: str, whence: str, remedy: str) -> bytes:
    """Decode an account's key, and refuse what is none.

    :param text: the key in base64.
    :param whence: where it comes from, for the message.
    :param remedy: what to do about a key that is none, for the message.
    :return: its bytes, at least `SHORTEST_KEY` of them.
    :raises HomeError: it is empty, no base64, or too short. The message does not hold it.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise HomeError(f"{whence} is not in base64: {remedy}.") from None
    if not key:
        raise HomeError(f"{whence} is empty: {remedy}.")
    if len(key) < SHORTEST_KEY:
        raise HomeError(f"{whence} has {len(key)} bytes once decoded, and needs {SHORTEST_KEY} at least: {remedy}.")
    return key


def is_published(key: bytes) -> bool:
    """Whether a key is the published one: its bytes count, since base64 can be written in several ways.

    :param key: a key, decoded.
    """
    return key == base64.b64decode(DEV_KEY)


@dataclass(frozen=True)
class Home:
    """A data directory.

    :param path: the directory, with no symbolic link in its path.
    """

    path: Path

    @classmethod
    def make(cls, path: Path) -> Home:
        """Make the directory where it is missing, and close it to all but its owner in any case.

        :param path: the directory.
        :return: it.
        :raises HomeError: it cannot be made or closed, or it is one that all users share.
        """
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise HomeError(f"The data directory {path} cannot be made ({error.strerror}): name another one.") from None
        home = cls(path.resolve())
        mode = stat.S_IMODE(home.path.stat().st_mode)
        if mode & stat.S_ISVTX or home.path == Path(home.path.anchor):
            raise HomeError(f"{path} is shared by all users: name a data directory of its own, such as {path}/batch.")
        if mode & 0o077:
            try:
                home.path.chmod(0o700)
            except OSError as error:
                raise HomeError(
                    f"The data directory {path} is open to other users (mode {mode:04o}) and cannot be closed "
                    f"({error.strerror}): name one of your own."
                ) from None
        return home

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Take the directory for this process, as long as the context lasts.

        :raises HomeError: another service has it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            note = self.read_note()
            who = f" (process {note['pid']} at {note['url']})" if note else ""
            raise HomeError(
                f"A local Batch service runs on {self.path} already{who}: stop it, or name another data directory."
            ) from None
        try:
            yield
        finally:
            os.close(descriptor)

    def key(self, given: str | None = None) -> str:
        """The key of this directory, made at random the first time.

        :param given: a key to use and keep instead. The published one is not kept: a later start without it would
            open the machine to anybody.
        :return: the key in base64.
        :raises HomeError: the key that is given or kept is none, or the kept one is the published one.
        """
        path = self.path / "key"
        if given is not None:
            given = given.strip()
            decoded = decode_key(given, "The key", "give 64 random bytes in base64, or none for a random key")
            if not is_published(decoded):
                self.write("key", given, replace=True)
            return given
        if not path.exists():
            self.write("key", base64.b64encode(secrets.token_bytes(64)).decode(), replace=False)
        return self.kept_key()

    def kept_key(self) -> str:
        """The key that this directory keeps.

        :return: the key in base64.
        :raises HomeError: there is none, it is none, or it is the published one.
        """
        path = self.path / "key"
        remedy = "remove the file for a random key"
        try:
            text = path.read_bytes().decode("ascii", "replace").strip()
        except OSError as error:
            raise HomeError(f"The key file {path} cannot be read: {error.strerror}.") from None
        if is_published(decode_key(text, f"The key in {path}", remedy)):
            raise HomeError(f"The key in {path} is the published one, which opens this machine: {remedy}.")
        return text

    def token(self) -> str:
        """The token that opens the page, made at random the first time.

        :return: the token.
        """
        path = self.path / "page-token"
        # One that is too short to be ours (an empty file) would open the page to anybody.
        if not path.exists() or len(path.read_text().strip()) < TOKEN_LENGTH:
            self.write("page-token", secrets.token_urlsafe(32), replace=path.exists())
        return path.read_text().strip()

    def page(self, url: str) -> str:
        """The address that opens the page.

        :param url: the service's address.
        :return: the page's address with the token in it.
        """
        return f"{url}/ui/?token={self.token()}"

    def note(self, pid: int, url: str, account: str, authority: Path | None = None, *, published: bool = False) -> None:
        """Note the service that runs here.

        :param pid: its process id.
        :param url: its address.
        :param account: its account's name.
        :param authority: the certificate that its clients have to trust; None without TLS, or where it is not known.
        :param published: its key is the published one, which is not kept.
        """
        told: dict[str, Any] = {
            "pid": pid,
            "url": url,
            "account": account,
            "authority": str(authority) if authority else None,
        }
        told["published"] = published
        self.write("service.json", json.dumps(told), replace=True)

    def read_note(self) -> dict[str, Any] | None:
        """The note of the service that runs, or ran, here.

        :return: pid, url and account; None where there is none.
        """
        try:
            note = json.loads((self.path / "service.json").read_text())
        except (OSError, ValueError):
            return None
        return note if isinstance(note, dict) and {"pid", "url", "account"} <= set(note) else None

    def forget_note(self) -> None:
        """Take the note away."""
        (self.path / "service.json").unlink(missing_ok=True)

    def locked(self) -> bool:
        """Whether a service has the directory.

        :return: whether it has.
        """
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def kept(self, name: str, fresh: Callable[[], str]) -> str:
        """A secret of this directory, made the first time.

        :param name: the file's name.
        :param fresh: makes it.
        :return: the secret.
        """
        path = self.path / name
        if not path.exists():
            self.write(name, fresh(), replace=False)
        return path.read_text().strip()

    def write(self, name: str, text: str, *, replace: bool) -> None:
        """Write a file, readable for its owner alone, that is there whole or not at all.

        :param name: the file's name.
        :param text: what it holds; a line's end is added.
        :param replace: whether to take the place of a file that is there; else that one stays.
        """
        partial = self.path / f".{name}.{secrets.token_hex(8)}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text + "\n")
            if replace:
                partial.replace(self.path / name)
            else:
                # A link does not replace: whoever comes second keeps the first one's key.
                os.link(partial, self.path / name)
        except FileExistsError:
            pass
        finally:
            partial.unlink(missing_ok=True)
