"""How much an account may have of what Azure Batch counts."""

from __future__ import annotations

from dataclasses import dataclass

#: What a quota can be of, and what it counts.
KINDS = {
    "jobs": "jobs and job schedules that are active",
    "pools": "pools, those being deleted included",
    "cores": "cores of dedicated nodes, over all pools",
    "spot-cores": "cores of spot nodes, over all pools",
}
#: Active jobs and job schedules that Azure grants without a call to its support
#: (https://learn.microsoft.com/azure/batch/batch-quota-limit; a new account has 100 to 300).
MOST_ACTIVE = 1000


class QuotasError(ValueError):
    """A specification that cannot be read."""


@dataclass(frozen=True)
class Quotas:
    """The quotas of the account.

    :param jobs: jobs and job schedules that may be active.
    :param pools: pools that there may be; None for as many as are wanted.
    :param cores: cores of dedicated nodes that there may be; None for as many as are wanted.
    :param spot_cores: the same of spot nodes.
    """

    jobs: int = MOST_ACTIVE
    pools: int | None = None
    cores: int | None = None
    spot_cores: int | None = None

    @classmethod
    def parse(cls, text: str) -> Quotas:
        """Read a specification; what it does not name keeps its default.

        :param text: such as ``jobs=10,pools=5,cores=20,spot-cores=8``.
        :return: the quotas.
        :raises QuotasError: it cannot be read.
        """
        given: dict[str, int] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            if name not in KINDS:
                raise QuotasError(f"There is no quota {name!r}: there are {', '.join(KINDS)}, such as cores=20.")
            if not (value.isascii() and value.isdigit()):
                raise QuotasError(f"The quota {part!r} cannot be read: it is a name, '=' and a whole number.")
            given[name.replace("-", "_")] = int(value)
        return cls(**given)

    def of_cores(self, dedicated: bool) -> int | None:
        """How many cores nodes of a kind may have together.

        :param dedicated: whether dedicated nodes are meant, or spot nodes.
        :return: the number; None for as many as are wanted.
        """
        return self.cores if dedicated else self.spot_cores
