"""Where the state is kept: one SQLite file, written in batches by one thread.

An entity that changed is *touched*. The next batch takes a picture of all that was touched, in one transaction; whoever
has to promise a change to a client waits for the batch that carries it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

#: One row: number, kind, number of the parent, what the client sent (None where it is kept already), what became of it.
Row = tuple[int, str, int, bytes | None, bytes]

#: How long a batch gathers changes that nobody waits for, in seconds.
GATHER = 0.005

#: What the rows look like: a service of another layout does not read them.
_LAYOUT = "4"

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
    :raises StoreError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
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
            raise StoreError(f"The state in {path} cannot be read ({error}): name another data directory.") from None
        if layout != _LAYOUT:
            self._db.close()
            raise StoreError(f"The state in {path} is of another version of the service: name another data directory.")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._touched: dict[int, Keepable] = {}
        self._dropped: set[int] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self._writing = False
        self._in_flight: set[int] = set()
        self._timer: asyncio.Handle | None = None
        self._failure: StoreError | None = None

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
        self._dropped.add(uid)
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
        if not self._writing:
            if self._timer is not None:
                self._timer.cancel()
            # One turn of the loop later: requests that arrived together share the transaction.
            self._timer = asyncio.get_running_loop().call_soon(self._flush)
        await waiter

    async def settle(self, uid: int) -> None:
        """Wait until what is about to be shown of an entity is written.

        :param uid: its number.
        """
        if uid in self._touched or uid in self._in_flight:
            await self.commit()

    def _flush(self) -> None:
        self._timer = None
        rows = [entity.row() for uid, entity in self._touched.items() if uid not in self._dropped]
        gone = [(uid,) for uid in self._dropped]
        waiters, self._waiters = self._waiters, []
        self._in_flight = set(self._touched)
        self._touched, self._dropped, self._writing = {}, set(), True
        loop = asyncio.get_running_loop()
        write = loop.run_in_executor(self._writer, self._write, rows, gone)
        write.add_done_callback(lambda done: self._written(done, waiters))

    def _write(self, rows: list[Row], gone: list[tuple[int]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO entity VALUES (?, ?, ?, ?) ON CONFLICT (uid) DO UPDATE SET body = excluded.body",
                [row[:4] for row in rows if row[3] is not None],
            )
            self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", [(row[0], row[4]) for row in rows])
            self._db.executemany("DELETE FROM entity WHERE uid = ?", gone)
            self._db.executemany("DELETE FROM state WHERE uid = ?", gone)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreError(f"The state could not be written: {error}.") from error

    def _written(self, done: asyncio.Future[None], waiters: list[asyncio.Future[None]]) -> None:
        self._writing, self._in_flight = False, set()
        error = done.exception()
        if isinstance(error, StoreError):
            # What was in that batch is lost to the file: nothing may be promised from here on.
            self._failure = error
        _answer(waiters, error)
        if error:
            log.error("%s", error)
        if self._touched or self._dropped:
            delay = 0.0 if self._waiters else GATHER
            self._timer = asyncio.get_running_loop().call_later(delay, self._flush)
        elif self._waiters:
            # They asked while a batch was being written that already held all there was.
            late, self._waiters = self._waiters, []
            _answer(late, error)

    async def close(self) -> None:
        """Write what is left and close the file."""
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
