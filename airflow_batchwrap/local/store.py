"""Where the state is kept: one SQLite file, written in batches by one thread.

An entity that changed is *touched*. The next batch takes a picture of all that was touched; whoever has to promise a
change to a client waits for the batch that carries it, and so does what may begin only when it is kept:

    store.touch(job)
    await store.commit()      # the job is in the file now

A batch that cannot be written (the file is locked, the disk is full) is tried again, and nothing that it carries is
promised meanwhile. If that lasts, the store gives up: `failed` is set, and whoever waits gets a `StoreError`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol

from airflow_batchwrap.local.model.entity import Row

log = logging.getLogger(__name__)

#: How long a batch gathers changes that nobody waits for, in seconds.
GATHER = 0.005
#: How long the state may be not writable before the service ends, in seconds.
PATIENCE = 30.0
#: How long one try waits for a lock on the file, and the pause before the next try, in seconds.
_BUSY, _PAUSE = 1.0, 0.2
#: How many entities a picture is taken of, and how many are forgotten, in one turn of the loop.
_PICTURE, _FORGOTTEN = 500, 5000

#: What the rows look like: a service of another layout does not read them.
_LAYOUT = "5"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entity (
    uid INTEGER PRIMARY KEY, kind TEXT NOT NULL, parent INTEGER NOT NULL, body BLOB NOT NULL
);
-- Apart from the bodies, which are larger and change seldom.
CREATE TABLE IF NOT EXISTS state (uid INTEGER PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Keepable(Protocol):
    """What the store keeps."""

    @property
    def uid(self) -> int: ...

    def row(self) -> Row:
        """The entity as a row."""


class StoreError(Exception):
    """The state could not be written or read."""


class Store:
    """The SQLite file.

    :param path: where it is.
    :param patience: how long it may be not writable before `failed` is set, in seconds.
    :raises StoreError: it cannot be read.
    """

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        self._path, self._patience = path, patience
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=_BUSY)
        try:
            # NORMAL: a commit survives the death of the process, as promised; a power cut may cost the last ones.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO setting VALUES ('layout', ?)", (_LAYOUT,))
            self._last_uid = int(self._db.execute("SELECT coalesce(max(uid), 0) FROM entity").fetchone()[0])
            layout = self._db.execute("SELECT value FROM setting WHERE name = 'layout'").fetchone()[0]
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(
                f"The state in {path} cannot be read ({error}): close what has it open, or name another data directory."
            ) from None
        if layout != _LAYOUT:
            self._db.close()
            raise StoreError(
                f"The state in {path} is of another version of the service: remove its directory, or name another one."
            )
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        # What has changed, and who waits for it; what is being written, slice by slice, and who waits for that.
        self._touched: dict[int, Keepable] = {}
        self._dropped: dict[int, None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._pending: dict[int, Keepable] = {}
        self._leaving: dict[int, None] = {}
        self._in_flight: set[int] = set()
        self._forgetting = False
        self._served: list[asyncio.Future[None]] = []
        self._served_callbacks: list[Callable[[], None]] = []
        self._writing = False
        self._timer: asyncio.Handle | None = None
        self._failing: float | None = None
        self._failure: StoreError | None = None
        #: Set once nothing will be written any more.
        self.failed = asyncio.Event()

    def rows(self) -> Iterator[tuple[int, str, int, bytes, bytes]]:
        """All rows, in the order of their numbers.

        :return: the rows, with their bodies.
        """
        yield from self._db.execute(
            "SELECT uid, kind, parent, body, state FROM entity JOIN state USING (uid) ORDER BY uid"
        )

    def next_uid(self) -> int:
        """A number for a new entity, above all that were given.

        :return: the number.
        """
        self._last_uid += 1
        return self._last_uid

    def touch(self, entity: Keepable) -> None:
        """Note that an entity is new or has changed.

        :param entity: the entity.
        """
        self._touched[entity.uid] = entity
        if self._timer is None and not self._writing:
            self._timer = asyncio.get_running_loop().call_later(GATHER, self._flush)

    def drop(self, uid: int) -> None:
        """Note that an entity is gone.

        :param uid: its number.
        """
        self._touched.pop(uid, None)
        self._pending.pop(uid, None)
        self._dropped[uid] = None
        if self._timer is None and not self._writing:
            self._timer = asyncio.get_running_loop().call_later(GATHER, self._flush)

    async def commit(self) -> None:
        """Wait until all that was noted so far is written.

        :raises StoreError: it could not be.
        """
        if self._failure:
            raise self._failure
        if not (self._touched or self._dropped or self._writing):
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._hurry()
        await waiter

    def _hurry(self) -> None:
        if not self._writing:
            if self._timer is not None:
                self._timer.cancel()
            # One turn of the loop later: requests that arrived together share the transaction.
            self._timer = asyncio.get_running_loop().call_soon(self._flush)

    async def settle(self, uid: int) -> None:
        """Wait until what is about to be shown of an entity, or to be done with it, is written.

        :param uid: its number.
        :raises StoreError: it could not be.
        """
        if uid in self._touched or uid in self._in_flight or uid in self._pending:
            await self.commit()

    async def settle_all(self, uids: Iterable[int]) -> None:
        """Wait until what is about to be shown as a list is written, and what is not shown any more is so for good.

        :param uids: the numbers of the entities that are shown.
        :raises StoreError: it could not be.
        """
        forgets = self._dropped or self._leaving or self._forgetting
        if forgets or any(uid in self._touched or uid in self._in_flight or uid in self._pending for uid in uids):
            await self.commit()

    def when_kept(self, follow: Callable[[], None]) -> None:
        """Let something follow once all that was noted so far is written.

        :param follow: called then, and never if it could not be.
        """
        if self._touched or self._dropped or self._writing:
            self._callbacks.append(follow)
        else:
            follow()

    def _flush(self) -> None:
        """Begin to write what was noted so far."""
        self._timer = None
        self._pending, self._touched = self._touched, {}
        self._leaving, self._dropped = self._dropped, {}
        self._served, self._waiters = self._waiters, []
        self._served_callbacks, self._callbacks = self._callbacks, []
        self._writing = True
        self._slice()

    def _slice(self) -> None:
        """Write as much of it as a picture can be taken of within a turn."""
        uids = list(islice(self._pending, _PICTURE))
        rows = [self._pending.pop(uid).row() for uid in uids]
        gone = list(islice(self._leaving, _FORGOTTEN))
        for uid in gone:
            del self._leaving[uid]
        self._in_flight, self._forgetting = set(uids), bool(gone)
        self._write(rows, gone)

    def _write(self, rows: list[Row], gone: list[int]) -> None:
        write = asyncio.get_running_loop().run_in_executor(self._writer, self._transact, rows, gone)
        write.add_done_callback(functools.partial(self._written, rows, gone))

    def _transact(self, rows: list[Row], gone: list[int]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO entity VALUES (?, ?, ?, ?) ON CONFLICT (uid) DO UPDATE SET body = excluded.body",
                [row[:4] for row in rows if row[3] is not None],
            )
            self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", [(row[0], row[4]) for row in rows])
            if gone:
                uids = [(uid,) for uid in gone]
                self._db.executemany("DELETE FROM entity WHERE uid = ?", uids)
                self._db.executemany("DELETE FROM state WHERE uid = ?", uids)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _written(self, rows: list[Row], gone: list[int], done: asyncio.Future[None]) -> None:
        if (error := done.exception()) is not None:
            self._not_written(rows, gone, error)
            return
        if self._failing is not None:
            log.warning("The state is written again, after %.1f s.", time.monotonic() - self._failing)
            self._failing = None
        self._in_flight, self._forgetting = set(), False
        if self._pending or self._leaving:
            self._slice()
            return
        self._writing = False
        served, self._served = self._served, []
        follow, self._served_callbacks = self._served_callbacks, []
        if self._touched or self._dropped:
            delay = 0.0 if self._waiters else GATHER
            self._timer = asyncio.get_running_loop().call_later(delay, self._flush)
        else:
            # They asked while a batch was being written that already held all there was.
            served, self._waiters = served + self._waiters, []
            follow, self._callbacks = follow + self._callbacks, []
        _answer(served, None)
        for callback in follow:
            callback()

    def _not_written(self, rows: list[Row], gone: list[int], error: BaseException) -> None:
        """Try the same rows again: they are the promise, whatever has changed since."""
        now = time.monotonic()
        if self._failing is None:
            self._failing = now
            log.error(
                "The state in %s cannot be written (%s): it is tried again for %g s, and no change is promised "
                "meanwhile. Make room on the disk, or close what has the file open.",
                self._path,
                error,
                self._patience,
            )
        if now - self._failing < self._patience:
            asyncio.get_running_loop().call_later(_PAUSE, self._write, rows, gone)
            return
        self._failure = StoreError(
            f"The state in {self._path} could not be written for {self._patience:g} s ({error}), so the service ends. "
            "What it has promised is kept: make room on the disk, or close what has the file open, and start it again."
        )
        waiting = [*self._served, *self._waiters]
        self._served, self._waiters, self._callbacks, self._served_callbacks = [], [], [], []
        _answer(waiting, self._failure)
        self.failed.set()

    async def close(self) -> None:
        """Write what is left and close the file.

        :raises StoreError: it could not be written.
        """
        try:
            await self.commit()
        finally:
            self._writer.shutdown(wait=True)
            self._db.close()


def _answer(waiters: list[asyncio.Future[None]], error: BaseException | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error:
            waiter.set_exception(error)
        else:
            waiter.set_result(None)
