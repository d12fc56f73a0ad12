"""Where artifacts are kept: a folder, or a prefix of an S3 bucket. Both look the same from here.

Keys are relative, with ``/``. A key is written whole or not at all, and with ``if_absent`` at most once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from launcher.artifacts.deadline import within
from launcher.artifacts.file_store import FileStore
from launcher.artifacts.keys import Advance, StoreError
from launcher.artifacts.manifest import FileEntry
from launcher.artifacts.s3_store import S3Store
from launcher.errors import UserError

__all__ = ["FileStore", "S3Store", "Store", "StoreError", "open_store", "soon"]

_Result = TypeVar("_Result")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Store(Protocol):
    """What a store can do. Every method raises StoreError, naming the place, when the store fails."""

    @property
    def url(self) -> str:
        """The root: an absolute path, or ``s3://bucket/prefix``."""
        ...

    def put_file(self, key: str, path: Path, advance: Advance | None = None) -> FileEntry:
        """Write a file's content; the entry's path is ``key``, its sha256 is of the bytes as read."""
        ...

    def get_file(self, key: str, path: Path, advance: Advance | None = None) -> None:
        """Read ``key`` into ``path``, which appears whole or not at all. Its folder must exist."""
        ...

    def put_bytes(self, key: str, data: bytes, if_absent: bool = False) -> bool:
        """Write small content. False, and nothing written, when ``if_absent`` and the key exists.

        Of several writers with ``if_absent`` exactly one gets True. Their data should differ: after a
        lost reply, content equal to ``data`` counts as this writer's own.
        """
        ...

    def get_bytes(self, key: str) -> bytes | None:
        """The content of ``key``, None when there is no such key."""
        ...

    def children(self, prefix: str, begins: str = "") -> list[str]:
        """Names directly in the folder ``prefix``, sorted; those of folders end with ``/``. Only those that
        begin with ``begins``: no others are asked for."""
        ...

    def list(self, prefix: str) -> list[str]:
        """All keys in the folder ``prefix`` and below, sorted."""
        ...

    def size(self, key: str) -> int | None:
        """The size of ``key`` in bytes, None when there is no such key."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Delete the key ``prefix`` and everything in the folder ``prefix``."""
        ...

    def uri(self, key: str) -> str:
        """Where ``key`` is, for people and other tools."""
        ...

    def check(self) -> None:
        """Write, read back and delete a small key, within 5 seconds. Raises StoreError with a hint."""
        ...


def open_store(url: str, s3_endpoint: str | None = None) -> Store:
    """The store at ``url``: a folder's path, ``file://`` or ``s3://bucket/prefix``. Touches nothing yet.

    ``s3_endpoint`` is the address of an S3-compatible service; None means AWS, or what
    ``AWS_ENDPOINT_URL`` says. Raises UserError when ``url`` is neither.
    """
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise UserError(
                f"artifacts: {bucket!r} in {url!r} is not a bucket's name",
                hint="write s3://BUCKET/PREFIX: 3 to 63 lower-case letters, digits, dots and dashes",
            )
        return S3Store(bucket, prefix.strip("/"), s3_endpoint)
    if "://" in url and not url.startswith("file:///"):
        raise UserError(f"artifacts: {url!r} is neither a folder nor s3://BUCKET/PREFIX")
    return FileStore(Path(url.removeprefix("file://")).expanduser().absolute())


def soon(store: Store, seconds: float, call: Callable[[], _Result]) -> _Result:
    """What ``call``, which asks ``store``, returns or raises; see ``within``. Raises StoreError after
    ``seconds``: a store that cannot be reached may be tried for minutes."""
    try:
        return within(seconds, call)
    except TimeoutError:
        raise StoreError(f"{store.url} did not answer within {seconds:g} seconds") from None
