"""What a set-up task hands to the steps, the fetch and the teardown of one run, as an XCom.

It names things; it grants nothing: no key and no SAS is in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_batchwrap.engine import protocol
from airflow_batchwrap.exceptions import ConfigError


@dataclass(frozen=True)
class BlobRef:
    """One blob, with what it must be.

    :param size: bytes.
    :param sha256: of the content, in hex.
    """

    container: str
    blob: str
    size: int
    sha256: str


@dataclass(frozen=True)
class InputFile:
    """One input: the name by which the step opens it, with forward slashes, and its content."""

    name: str
    ref: BlobRef


# The marker is a key of its own rather than a shape, so that no value of a user's step is taken for a reference: a
# value that has this key travels in a file (`engine.values.fits_xcom`).
_REFERENCE = protocol.REFERENCE


@dataclass(frozen=True)
class ValueReference:
    """A step's return value that is too large for an XCom: it stays in Blob, and the next node reads it there."""

    ref: BlobRef

    def to_xcom(self) -> dict[str, Any]:
        return {_REFERENCE: asdict(self.ref)}

    @classmethod
    def from_xcom(cls, value: object) -> ValueReference | None:
        """Read what :meth:`to_xcom` wrote; None where the value is an ordinary one."""
        if isinstance(value, dict) and set(value) == {_REFERENCE} and isinstance(value[_REFERENCE], dict):
            return cls(BlobRef(**value[_REFERENCE]))
        return None


@dataclass(frozen=True)
class Workspace:
    """Where one run of a workflow lives.

    :param pool_id: the pool its Batch tasks run on.
    :param owns_pool: whether the teardown deletes the pool.
    :param job_id: the Batch job of this run.
    :param epoch: of the set-up task: 1, and one more each time that a person clears it.
    :param archive: engine and steps; None for command lines only.
    :param steps: the step files in the archive.
    :param inputs: the files that the job preparation task puts on each node.
    :param inputs_dir: where they are on a node, as :class:`~airflow_batchwrap.engine.protocol.Call` has it.
    :param output_container: the container of the run's results.
    :param output_prefix: the run's folder in it.
    :param group: the task group of the set-up task; empty where it is in none.
    """

    pool_id: str
    owns_pool: bool
    job_id: str
    epoch: int = 1
    archive: BlobRef | None = None
    steps: tuple[str, ...] = ()
    inputs: tuple[InputFile, ...] = ()
    inputs_dir: str = ""
    output_container: str = ""
    output_prefix: str = ""
    group: str = ""
    version: int = field(default=1)

    def to_xcom(self) -> dict[str, Any]:
        """Return plain JSON."""
        data = asdict(self)
        data["steps"] = list(self.steps)
        data["inputs"] = [asdict(item) for item in self.inputs]
        return data

    @classmethod
    def from_xcom(cls, data: object) -> Workspace:
        """Read what :meth:`to_xcom` wrote.

        :raises ConfigError: it is something else, such as the output of another task.
        """
        if isinstance(data, Workspace):
            return data
        if not isinstance(data, dict) or not {"pool_id", "job_id", "owns_pool"} <= set(data):
            what = "nothing" if data is None else f"a {type(data).__name__}"
            raise ConfigError(
                f"workspace is {what}, not the workspace that a set-up task returns. Pass the output of "
                "CreatePoolOperator, RepurposePoolOperator or UsePoolOperator, and see that it has run."
            )
        values = dict(data)
        if values.get("archive") is not None:
            values["archive"] = BlobRef(**values["archive"])
        values["steps"] = tuple(values.get("steps", ()))
        values["inputs"] = tuple(InputFile(item["name"], BlobRef(**item["ref"])) for item in values.get("inputs", ()))
        return cls(**values)
