"""Fifty launches at once against one experiment's budget: 5 threads in each of 10 processes.

    python -m tests.e2e.fifty_launches STORE ENDPOINT|-

prints, as JSON, which were admitted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.artifacts.store import open_store
from launcher.errors import Refused
from launcher.money import booking, gate
from launcher.money.account import About, Entry, Short
from launcher.money.caps import Caps
from launcher.money.ledger import open_ledger

LAUNCHED = 1_800_000_000_000
LEASE_MS = 300_000  # at $12 per hour: one dollar
PRICE = 12_000_000
BUDGET = 17_999_999  # one micro-dollar short of eighteen
PROCESSES, THREADS = 10, 5


def launch(url: str, endpoint: str | None, number: int) -> bool:
    entry = Entry(f"r{number}-1", f"r{number}", PRICE, LAUNCHED, LAUNCHED + LEASE_MS)
    caps = Caps(experiment="e", experiment_budget=BUDGET)
    order = gate.Order(entry, About("tiny", "pretrain", "ann", "aws"), caps, Caps())
    try:
        booking.reserve(open_ledger(open_store(url, endpoint)), order)
    except Refused as refused:
        if not isinstance(refused.__cause__, Short):
            raise
        return False
    return True


def main(url: str, endpoint: str | None) -> list[int]:
    open_store(url, endpoint).children("")  # what is imported and read now, every child inherits
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for process in range(PROCESSES):
            pid = os.fork()
            if pid == 0:
                numbers = range(process * THREADS, (process + 1) * THREADS)
                try:
                    with ThreadPoolExecutor(THREADS) as pool:
                        admitted = list(pool.map(lambda number: launch(url, endpoint, number), numbers))
                    found = [number for number, ok in zip(numbers, admitted, strict=True) if ok]
                    Path(folder, str(process)).write_text(json.dumps(found))
                finally:
                    os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        parts = sorted(Path(folder).iterdir())
        assert len(parts) == PROCESSES, "a process failed"
        return [number for part in parts for number in json.loads(part.read_text())]


if __name__ == "__main__":
    where, at = sys.argv[1:]
    print(json.dumps(main(where, None if at == "-" else at)))
