"""Faults on purpose: what a client of Azure has to live with, at given rates, from a seed."""

from __future__ import annotations

import random

#: What can go wrong, and what the number in the specification means for it.
KINDS = {
    "429": "share of the requests that are answered 429 TooManyRequests",
    "503": "share of the requests that are answered 503 ServerBusy",
    "drop": "share of the requests whose connection is cut, before or after they take effect",
    "preempt": "share of the commands started on a spot node that cost it the node",
    "download": "share of the resource files that cannot be downloaded",
    "allocation": "share of the resizes that get none of the nodes that are missing",
    "sign-in": "share of the requests for a token that are answered 500, or whose connection is cut",
    "expire": "share of the tokens that Batch takes for expired soon after they were given out",
}


class FaultsError(ValueError):
    """A specification that cannot be read."""


class Faults:
    """Decides what goes wrong.

    Each kind of fault has a stream of random numbers of its own, made from the seed: the n-th request, command or file
    meets the same fate in every run with the same specification, whatever happens to the other kinds.

    :param rates: the share of each of `KINDS`, 0 to 1.
    :param counts: in place of a share, how often it goes wrong before it never does again.
    :param seed: where the random numbers begin.
    :param retry_after: what Retry-After says, in seconds.
    :param expire_after: how long a token is good for that expires early, in seconds.
    """

    def __init__(
        self,
        rates: dict[str, float] | None = None,
        seed: int = 0,
        retry_after: int = 1,
        counts: dict[str, int] | None = None,
        expire_after: int = 1,
    ) -> None:
        self._counts = dict(counts or {})
        self.rates = {kind: rate for kind, rate in (rates or {}).items() if rate > 0}
        self.retry_after, self.expire_after = retry_after, expire_after
        self._dice = {kind: random.Random(f"{seed}:{kind}") for kind in (*KINDS, "after", "how")}  # noqa: S311 - no secrets

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Read a specification.

        :param text: such as ``seed=7,503=0.1,allocation=2x,retry-after=2``: a share, or how often before no more.
        :return: the faults.
        :raises FaultsError: it cannot be read.
        """
        rates: dict[str, float] = {}
        counts: dict[str, int] = {}
        others = {"seed": 0, "retry-after": 1, "expire-after": 1}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            try:
                if name in others:
                    others[name] = int(value)
                elif name in KINDS and value.endswith("x"):
                    counts[name] = int(value[:-1])
                elif name in KINDS:
                    rates[name] = float(value)
                else:
                    raise FaultsError(f"There is no fault {name!r}: there are {', '.join((*others, *KINDS))}.")
            except FaultsError:
                raise
            except ValueError:
                raise FaultsError(f"The fault {part!r} cannot be read: it is a name, '=' and a number.") from None
            if not 0 <= rates.get(name, 0) <= 1 or counts.get(name, 0) < 0:
                raise FaultsError(f"The fault {part!r} is no share: give a number from 0 to 1, or a count such as 2x.")
        return cls(rates, others["seed"], others["retry-after"], counts, others["expire-after"])

    def __bool__(self) -> bool:
        """Whether anything can go wrong."""
        return bool(self.rates or self._counts)

    def strikes(self, kind: str) -> bool:
        """Whether this time it goes wrong.

        :param kind: one of `KINDS`.
        :return: whether it does.
        """
        if self._counts.get(kind, 0) > 0:
            self._counts[kind] -= 1
            return True
        rate = self.rates.get(kind)
        return rate is not None and self._dice[kind].random() < rate

    def request(self) -> str:
        """What becomes of a request.

        :return: empty for nothing; ``429`` or ``503``; ``cut`` for a connection that is cut at once, ``cut after`` for
            one that is cut when the request has taken effect.
        """
        # All are drawn each time, so that one kind's fate does not depend on another's rate.
        cut, busy, throttled = self.strikes("drop"), self.strikes("503"), self.strikes("429")
        if cut:
            return "cut" if self._dice["after"].random() < 0.5 else "cut after"
        return "503" if busy else "429" if throttled else ""

    def sign_in(self) -> str:
        """What becomes of a request for a token.

        :return: empty for nothing; ``500``; ``cut`` for a connection that is cut.
        """
        if not self.strikes("sign-in"):
            return ""
        return "cut" if self._dice["how"].random() < 0.5 else "500"
