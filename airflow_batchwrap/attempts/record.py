"""The engine's answer, read from Blob as what it may be: written by anything that ran on the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_batchwrap.engine import protocol

if TYPE_CHECKING:
    from airflow_batchwrap.hooks.batch import BatchWrapHook

# Bytes. A record holds a small value, and some 250 bytes for each file that the step chose: room for a million of them
# and none to fill a worker's memory.
_MOST = 256 * 1024 * 1024


def read_record(hook: BatchWrapHook, container: str, prefix: str) -> protocol.Result | None:
    """Read a result record.

    :param prefix: of the attempt's blobs, without a slash at its end.
    :return: it; None where the attempt left none.
    :raises ProtocolError: what is there is none.
    :raises ConfigError: it is far too large to be one.
    """
    try:
        data = hook.read_blob(container, f"{prefix}/{protocol.RESULT_FILE}", most=_MOST)
        return None if data is None else protocol.Result.loads(data.decode())
    except UnicodeDecodeError as error:
        raise protocol.ProtocolError(f"the result record is not UTF-8: {error.reason}") from None
