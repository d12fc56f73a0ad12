"""Fifty launches at once against one experiment's budget, in ten processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.artifacts.store import FileStore, Store
from launcher.money.ledger import open_ledger
from tests.e2e import fifty_launches

if TYPE_CHECKING:
    from tests.unit.conftest import S3Server


def fifty(url: str, endpoint: str | None) -> list[int]:
    command = [sys.executable, "-m", "tests.e2e.fifty_launches", url, endpoint or "-"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_of_fifty_launches_as_many_are_admitted_as_fit(store: Store, request: pytest.FixtureRequest) -> None:
    endpoint = None
    if not isinstance(store, FileStore):
        server: S3Server = request.getfixturevalue("s3_server")
        endpoint = server.endpoint
    admitted = fifty(store.url, endpoint)
    assert len(admitted) == fifty_launches.BUDGET // 1_000_000 == 17
    held = open_ledger(store).read("experiments/e")
    assert sorted(held.entries) == sorted(f"r{number}-1" for number in admitted)
    assert held.committed() == 17_000_000
