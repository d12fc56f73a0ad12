"""The ledger in both kinds of store: what an account counts, who wins, and what a lost call does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.artifacts.store import FileStore, Store, StoreError
from launcher.errors import Refused
from launcher.money import account, cells
from launcher.money.account import HOUR_MS, About, Account, Closed, Entry, Short, money
from launcher.money.ledger import Ledger, account_name, open_ledger

if TYPE_CHECKING:
    pass

T = 1_800_000_000_000
ABOUT = About("tiny", "pretrain", "ann", "aws")
ONE = Entry("r-1", "r", 3_600_000, T, T + 60_000)  # a dollar per 1,000 s, six cents
EMPTY = Account("e")


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return open_ledger(store)


def capped(micros: int, run: str | None = None) -> Account:
    begun = replace(EMPTY, runs={"r": ABOUT})
    return account.set_budget(begun, run, micros, "ann", T)


# What an account counts


def test_the_same_key_twice_is_one_entry() -> None:
    once = account.reserve(EMPTY, ONE, ABOUT)
    assert account.reserve(once, replace(ONE, until=T + 1), ABOUT) == once
    assert once.committed() == once.committed("r") == 60_000


def test_a_cap_is_met_to_the_micro_dollar() -> None:
    assert account.reserve(capped(60_000), ONE, ABOUT).committed() == 60_000
    with pytest.raises(Short, match=r"budget of experiment e is \$0.059999.*\$0.000001 too much"):
        account.reserve(capped(59_999), ONE, ABOUT)
    with pytest.raises(Short, match="budget of run r"):
        account.reserve(capped(59_999, "r"), ONE, ABOUT)


def test_an_unknown_price_is_not_nothing() -> None:
    unknown = replace(ONE, key="r-2", price=None)
    free = account.reserve(EMPTY, unknown, ABOUT)
    assert free.entries["r-2"].cost == 0
    with pytest.raises(Refused, match="unknown is not 0"):
        account.reserve(capped(1_000_000), unknown, ABOUT)
    with pytest.raises(Refused, match="unknown is not 0"):
        account.reserve(account.set_budget(free, "r", 1_000_000, "ann", T), ONE, ABOUT)


def test_a_lease_goes_as_far_as_the_caps() -> None:
    held = account.reserve(capped(100_000, "r"), ONE, ABOUT)
    held = account.renew(held, "r-1", T + 80_000)
    assert held.entries["r-1"].until == T + 80_000
    held = account.renew(held, "r-1", T + 500_000)
    assert held.entries["r-1"].until == T + 100_000, "ten cents are a hundred seconds"
    assert account.renew(held, "r-1", T + 70_000).entries["r-1"].until == T + 70_000, "given up"
    other = account.reserve(
        account.renew(held, "r-1", T + 70_000), replace(ONE, key="r-2", until=T + 30_000), ABOUT
    )
    assert account.renew(other, "r-1", T + 500_000).entries["r-1"].until == T + 70_000


def test_what_is_never_settled_counts_to_the_end_of_its_lease() -> None:
    held = account.reserve(EMPTY, ONE, ABOUT)
    entry = held.entries["r-1"]
    assert entry.is_open(T + 59_999)
    assert not entry.is_open(T + 60_000)
    assert held.committed() == 60_000
    assert (
        account.settle_run(
            account.reserve(held, replace(ONE, key="r-2", launched=T + 70_000), ABOUT), "r", T + 90_000
        )
        .of("r")[0]
        .ended
        == T + 60_000
    )


@given(st.lists(st.integers(T, T + HOUR_MS), min_size=1), st.randoms())
def test_settled_in_any_order_and_often_is_the_same(ends: list[int], chance: object) -> None:
    held = account.reserve(EMPTY, ONE, ABOUT)
    there, back = held, held
    for end in ends:
        there = account.settle(there, "r-1", end)
    for end in reversed(ends + ends):
        back = account.settle(back, "r-1", end)
    assert there == back
    assert there.entries["r-1"].ended == max(ends)
    with pytest.raises(Closed):
        account.renew(there, "r-1", T + HOUR_MS)


@given(st.integers(1, 10**9), st.integers(0, 10**12))
def test_what_is_affordable_is_afforded(price: int, micros: int) -> None:
    ms = account.affordable_ms(price, micros)
    assert account.charge(price, ms) <= micros < account.charge(price, ms + 1)


def test_an_entry_has_one_attempt() -> None:
    held = account.adopt(account.reserve(EMPTY, ONE, ABOUT), "r-1", 1, {"cloud": "AWS", "zone": None})
    assert (held.entries["r-1"].attempt, held.entries["r-1"].cloud) == (1, "aws")
    assert account.adopt(held, "r-1", 1, {}) == held, "asked again after a lost reply"
    with pytest.raises(Closed):
        account.adopt(held, "r-1", 2, {})
    with pytest.raises(Closed):
        account.adopt(account.settle(held, "r-1", T), "r-1", 1, {})


def test_the_latest_budget_holds_unless_it_is_spent_already() -> None:
    held = account.reserve(capped(100_000), ONE, ABOUT)
    lower = account.set_budget(held, None, 60_000, "bob", T + 1)
    assert lower.budget == 60_000
    assert [(b.amount, b.by) for b in lower.budgets] == [(100_000, "ann"), (60_000, "bob")]
    with pytest.raises(Refused, match=r"below the \$0.06 that it has spent"):
        account.set_budget(held, None, 59_999, "bob", T + 1)
    assert account.set_budget(lower, None, 60_000, "eve", T + 2) == lower, "nothing new"


def test_money_for_people() -> None:
    assert [money(x) for x in (0, 1, 50_000, 500_000, 1_234_567_890, -5_000_000)] == [
        "$0.00", "$0.000001", "$0.05", "$0.50", "$1,234.57", "-$5.00",
    ]  # fmt: skip


# In a store


def test_an_account_comes_back_as_it_went(ledger: Ledger) -> None:
    assert ledger.read("experiments/e") == EMPTY
    step: Callable[[Account], Account] = lambda held: account.reserve(held, ONE, ABOUT)  # noqa: E731
    kept = ledger.change("experiments/e", step)
    ledger.change("experiments/e", lambda held: account.set_budget(held, "r", 70_000, "ann", T))
    held = ledger.read("experiments/e")
    assert held.entries == kept.entries
    assert held.budget_of("r") == 70_000
    ledger.change(account_name("s", None), lambda held: account.reserve(held, replace(ONE, run="s"), ABOUT))
    assert sorted(ledger.accounts()) == ["experiments/e", "runs/s"]
    assert ledger.accounts()["runs/s"].experiment is None


def test_a_refused_change_changes_nothing(ledger: Ledger) -> None:
    ledger.change("experiments/e", lambda held: capped(1))
    before = ledger.read("experiments/e")
    with pytest.raises(Short):
        ledger.change("experiments/e", lambda held: account.reserve(held, ONE, ABOUT))
    assert ledger.read("experiments/e") == before


def test_a_document_is_swapped_only_as_it_was_read(store: Store) -> None:
    held = cells.open_cells(store)
    assert held.read("a") is None
    assert held.names() == []
    assert held.swap("a", b"1", None)
    assert not held.swap("a", b"2", None), "it is there already"
    first = held.read("a")
    assert first
    assert held.swap("a", b"2", first[1])
    assert not held.swap("a", b"3", first[1]), "that was the one before"
    second = held.read("a")
    assert second
    assert second[0] == b"2"
    assert not held.swap("absent", b"1", second[1])


def test_a_change_is_made_again_when_another_was_first(ledger: Ledger, store: Store) -> None:
    """The second launcher writes between the first one's read and write."""
    rival = open_ledger(store)
    tries: list[int] = []

    def step(held: Account) -> Account:
        tries.append(len(held.entries))
        if len(tries) == 1:
            rival.change("experiments/e", lambda held: account.reserve(held, replace(ONE, key="r-2"), ABOUT))
        return account.reserve(held, ONE, ABOUT)

    assert set(ledger.change("experiments/e", step).entries) == {"r-1", "r-2"}
    assert tries == [0, 1]


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    held = cells.open_cells(FileStore(tmp_path))
    held.swap("runs/r", b'{"new": 1}', None)
    with pytest.raises(StoreError, match=r"account runs/r cannot be read"):
        Ledger(held).read("runs/r")
    (tmp_path / "ledger" / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        Ledger(held).read("runs/r")
