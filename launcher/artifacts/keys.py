"""What both stores share: their error, their protocol of keys, and hashing while reading."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from launcher.errors import Refused, UserError

# Called with the number of bytes just moved; negative when a transfer starts over.
Advance = Callable[[int], None]

CHUNK = 8 * 1024 * 1024
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class StoreError(Refused):
    """The store cannot be reached or used, or what it holds is damaged."""


def check_relative(path: str) -> str:
    """``path`` itself. Raises ValueError unless it stays below the folder it is relative to."""
    if not path or "\0" in path or path.startswith("/"):
        raise ValueError(f"{path!r} is not a relative path")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} would leave its folder or has an empty part")
    return path


def check_key(key: str) -> str:
    """``key`` itself. Raises ValueError: keys are made by this package, so a bad one is its bug."""
    check_relative(key)
    key.encode()
    return key


def folder_prefix(prefix: str) -> str:
    """A listing's prefix as a folder: ``""`` or ending with one ``/``."""
    stripped = prefix.strip("/")
    return f"{check_key(stripped)}/" if stripped else ""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises UserError for pipes and devices, which would block, and when absent."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is not a regular file", hint="an artifact holds files and folders only")
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


class HashingReader:
    """A binary file that hashes each byte the first time it is read, in order.

    An uploader may seek back to send a part again; what was hashed is not hashed twice. ``size`` is the
    number of bytes hashed so far.
    """

    def __init__(self, file: BinaryIO, advance: Advance | None = None) -> None:
        self._file = file
        self._sha = hashlib.sha256()
        self._advance = advance
        self.size = 0

    def read(self, amount: int | None = -1) -> bytes:
        at = self._file.tell()
        data = self._file.read(-1 if amount is None else amount)
        new = at + len(data) - self.size
        if at <= self.size and new > 0:
            self._sha.update(data[-new:])
            self.size += new
            if self._advance:
                self._advance(new)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    sha = hashlib.sha256()
    with open_regular(path) as file:
        while data := file.read(CHUNK):
            sha.update(data)
    return sha.hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make the renames and links in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
