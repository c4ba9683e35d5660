"""A set-up has one pool and one job, whatever Azure still holds of earlier tries."""

from __future__ import annotations

import logging

import pytest

from airflow_batchwrap.attempts.claim import CONTENT, MAKER, Claim
from airflow_batchwrap.exceptions import PoolError, Throttled, TryAgain
from airflow_batchwrap.hooks.views import EntityView

OURS = {MAKER: "me", CONTENT: "this"}


class Account:
    """What an account holds, by id."""

    def __init__(self, **held: tuple[str, dict[str, str]]) -> None:
        self.held = {name: EntityView(name, state, metadata) for name, (state, metadata) in held.items()}
        self.deleted: list[str] = []
        self.lose = False

    def find(self, prefix: str) -> list[EntityView]:
        return [item for name, item in self.held.items() if name.startswith(prefix)]

    def make(self, name: str) -> bool:
        if name in self.held:
            return False
        self.held[name] = EntityView(name, "active", OURS)
        if self.lose:
            raise Throttled("no answer.")
        return True

    def delete(self, name: str) -> bool:
        self.deleted.append(name)
        return True

    def claim(self, epoch: int = 1) -> Claim:
        log = logging.getLogger(__name__)
        return Claim("pool", "f_", epoch, "me", "this", self.find, self.make, self.delete, log)


def test_an_id_that_is_still_held_is_passed_over() -> None:
    account = Account(f_e1=("deleting", OURS))
    assert account.claim().take() == "f_e1-2"
    assert account.deleted == []


def test_the_newest_that_fits_is_taken_and_the_others_are_deleted() -> None:
    account = Account(
        f_e1=("active", OURS),
        **{"f_e1-2": ("active", OURS), "f_e2": ("active", {**OURS, CONTENT: "that"})},
        f_else=("active", {}),
    )
    assert account.claim(epoch=3).take() == "f_e1-2"
    assert sorted(account.deleted) == ["f_e1", "f_e2"]


def test_what_is_not_ours_is_neither_taken_nor_deleted() -> None:
    account = Account(f_e1=("active", {MAKER: "you", CONTENT: "this"}))
    assert account.claim().take() == "f_e1-2"
    assert account.deleted == []


def test_when_all_ids_are_held_another_try_may_help() -> None:
    account = Account(f_e1=("deleting", {}), **{f"f_e1-{number}": ("deleting", {}) for number in range(2, 21)})
    with pytest.raises(TryAgain, match="being deleted"):
        account.claim().take()


def test_a_lost_answer_is_no_lost_pool() -> None:
    account = Account()
    account.lose = True
    assert account.claim().take() == "f_e1"
    assert list(account.held) == ["f_e1"]


@pytest.mark.parametrize(
    ("held", "error"),
    [
        (("active", {}), PoolError),
        (("deleting", OURS), TryAgain),
        (("active", {**OURS, CONTENT: "that"}), TryAgain),
    ],
)
def test_a_named_one_is_ours_or_told(held: tuple[str, dict[str, str]], error: type[Exception]) -> None:
    with pytest.raises(error, match="mine"):
        Account(mine=held).claim().take_named("mine")
    assert Account(mine=("active", OURS)).claim().take_named("mine") == "mine"
    assert Account().claim().take_named("mine") == "mine"
