"""Small documents that change by compare-and-swap: objects of S3 by conditional writes, or rows of SQLite."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from launcher.artifacts.store import FileStore, S3Store, Store, StoreError

FOLDER = "ledger"
_BUSY_S = 30.0  # for the others' transactions, of milliseconds each


class Cells(Protocol):
    """Every method raises StoreError when the place fails; a write may have taken effect all the same."""

    def read(self, name: str) -> tuple[bytes, str] | None:
        """A document and its tag, None when there is none."""
        ...

    def swap(self, name: str, data: bytes, tag: str | None) -> bool:
        """Write it if its tag is still ``tag`` (None: absent). False when it is not: read again."""
        ...

    def names(self) -> list[str]:
        """All documents, sorted."""
        ...


class S3Cells:
    """Objects ``ledger/NAME.json`` of an artifact store on S3."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._checked = False

    def read(self, name: str) -> tuple[bytes, str] | None:
        return self._store.get_tagged(f"{FOLDER}/{name}.json")

    def swap(self, name: str, data: bytes, tag: str | None) -> bool:
        self._check()
        return self._store.swap(f"{FOLDER}/{name}.json", data, tag)

    def names(self) -> list[str]:
        keys = self._store.list(FOLDER)
        return [key.removeprefix(f"{FOLDER}/").removesuffix(".json") for key in keys]

    def _check(self) -> None:
        """Once: a service that ignores If-Match would lose entries without a word."""
        if self._checked:
            return
        key = f".nemo-sky-check/{uuid.uuid4().hex}"
        self._store.swap(key, b"1", None)
        ignored = self._store.swap(key, b"2", f'"{"0" * 32}"')
        self._store.delete_prefix(key)
        if ignored:
            raise StoreError(
                f"{self._store.url} ignores If-Match, so that no budget could be kept in it",
                hint="use a service that has conditional writes, as AWS, MinIO and R2 have",
            )
        self._checked = True


class SqliteCells:
    """Rows of one SQLite file. Every process of the machine may use it at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> tuple[bytes, str] | None:
        if not self._path.exists():
            return None
        with self._open() as db:
            row = db.execute("select data, version from cells where name = ?", (name,)).fetchone()
        return (bytes(row[0]), str(row[1])) if row else None

    def swap(self, name: str, data: bytes, tag: str | None) -> bool:
        with self._open() as db:
            if tag is None:
                done = db.execute("insert or ignore into cells values (?, 1, ?)", (name, data))
            else:
                done = db.execute(
                    "update cells set data = ?, version = version + 1 where name = ? and version = ?",
                    (data, name, int(tag)),
                )
            return done.rowcount == 1

    def names(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._open() as db:
            return [str(row[0]) for row in db.execute("select name from cells order by name")]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement: it commits by itself, and is on disk when it returns."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)) as db:
                db.execute("create table if not exists cells (name text primary key, version int, data blob)")
                yield db
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the ledger {self._path} cannot be used: {error}",
                hint="it is a file of SQLite: its folder must be writable, and its file system must lock",
            ) from error


def open_cells(store: Store) -> Cells:
    """The ledger's documents live with the artifacts: who shares the store shares them."""
    if isinstance(store, S3Store):
        return S3Cells(store)
    assert isinstance(store, FileStore), "there are two kinds of store"
    return SqliteCells(store.root / FOLDER / "ledger.sqlite")
