"""The ledger: what every attempt costs, and the caps, shared by all who use an artifact store.

    ledger/experiments/NAME    an experiment with all its runs
    ledger/runs/RUN_ID         a run outside any experiment

Each is an account (``launcher.money.account``) that changes by compare-and-swap, so of two launches that
together do not fit exactly one is admitted. Every change may be repeated: one whose reply was lost is
simply asked for again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from launcher.artifacts.store import Store, StoreError
from launcher.money.account import Account
from launcher.money.cells import Cells, open_cells

PATIENCE_S = 60.0  # fifty launches at once are through in a few seconds
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.5


class Ledger:
    """The accounts in ``cells``."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    def read(self, name: str) -> Account:
        """The account as it is now, empty when there is none. Raises StoreError."""
        return self._read(name)[0]

    def change(self, name: str, step: Callable[[Account], Account]) -> Account:
        """Replace the account by ``step`` of it, and return that. ``step`` may be called several times.

        Raises what ``step`` raises, and then nothing was changed; StoreError when the store fails, and
        then the change may have taken effect or not.
        """
        deadline = time.monotonic() + PATIENCE_S
        pause = _FIRST_PAUSE_S
        while True:
            before, tag = self._read(name)
            after = step(before)
            if after == before or self._cells.swap(name, after.to_json(), tag):
                return after
            if time.monotonic() > deadline:
                raise StoreError(f"the ledger's account {name} changes too fast to write to it")
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def accounts(self) -> dict[str, Account]:
        """Every account by its name."""
        return {name: self.read(name) for name in self._cells.names()}

    def _read(self, name: str) -> tuple[Account, str | None]:
        found = self._cells.read(name)
        if found is None:
            kind, _, rest = name.partition("/")
            return Account(experiment=rest if kind == "experiments" else None), None
        data, tag = found
        try:
            return Account.from_json(data), tag
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"the ledger's account {name} cannot be read: {error!r}",
                hint="a newer nemo-sky may have written it: use that one",
            ) from error


def open_ledger(store: Store) -> Ledger:
    """The ledger that lives with the artifacts of ``store``."""
    return Ledger(open_cells(store))


def account_name(run: str, experiment: str | None) -> str:
    """The account of a run: its experiment's, or one of its own."""
    return f"experiments/{experiment}" if experiment else f"runs/{run}"


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
