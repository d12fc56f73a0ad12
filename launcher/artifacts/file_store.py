"""A store in a folder. Content is written under ``.tmp`` of the same file system, then linked into place."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.artifacts.deadline import within
from launcher.artifacts.keys import (
    CHUNK,
    Advance,
    HashingReader,
    StoreError,
    check_key,
    folder_prefix,
    fsync_folder,
    open_regular,
)
from launcher.artifacts.manifest import FileEntry

CHECK_SECONDS = 5.0

_SCRATCH = ".tmp"


class FileStore:
    """Artifacts below the folder ``root``, which is made when first written to.

    Files in it are read-only: a stage that is given them by a link must not change them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def put_file(self, key: str, path: Path, advance: Advance | None = None) -> FileEntry:
        target = self._path(key)
        with open_regular(path) as source, self._errors("write", target), self._scratch() as temporary:
            reader = HashingReader(source, advance)
            with temporary.open("wb") as sink:
                shutil.copyfileobj(reader, sink, CHUNK)
                sink.flush()
                os.fchmod(sink.fileno(), 0o444)
                os.fsync(sink.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
            fsync_folder(target.parent)
        return FileEntry(key, reader.size, reader.hexdigest())

    def get_file(self, key: str, path: Path, advance: Advance | None = None) -> None:
        source = self._path(key)
        if not source.is_file():
            raise StoreError(f"{source} is missing from the artifact store")
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with self._errors("read", source), source.open("rb") as file, os.fdopen(descriptor, "wb") as sink:
                while data := file.read(CHUNK):
                    sink.write(data)
                    if advance:
                        advance(len(data))
                os.fchmod(sink.fileno(), 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    def put_bytes(self, key: str, data: bytes, if_absent: bool = False) -> bool:
        target = self._path(key)
        with self._errors("write", target), self._scratch() as temporary:
            with temporary.open("wb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            if if_absent:
                try:
                    # A link fails when the name is taken, on every file system, for every process.
                    os.link(temporary, target)
                except FileExistsError:
                    return False
            else:
                temporary.replace(target)
            fsync_folder(target.parent)
        return True

    def get_bytes(self, key: str) -> bytes | None:
        path = self._path(key)
        with self._errors("read", path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def children(self, prefix: str, begins: str = "") -> list[str]:
        folder = self.root / folder_prefix(prefix)
        with self._errors("list", folder):
            try:
                with os.scandir(folder) as entries:
                    names = [
                        f"{entry.name}/" if entry.is_dir() else entry.name
                        for entry in entries
                        if entry.name.startswith(begins)
                    ]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in names if name != f"{_SCRATCH}/")

    def list(self, prefix: str) -> list[str]:
        folder = self.root / folder_prefix(prefix)
        with self._errors("list", folder):
            found = [
                str((Path(place) / name).relative_to(self.root))
                for place, _, names in os.walk(folder, onerror=_unless_absent)
                for name in names
            ]
        return sorted(key for key in found if not key.startswith(f"{_SCRATCH}/"))

    def size(self, key: str) -> int | None:
        path = self._path(key)
        with self._errors("read", path):
            return path.stat().st_size if path.is_file() else None

    def delete_prefix(self, prefix: str) -> None:
        path = self._path(prefix.rstrip("/"))
        with self._errors("delete", path), suppress(FileNotFoundError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def uri(self, key: str) -> str:
        return str(self._path(key))

    def check(self) -> None:
        try:
            within(CHECK_SECONDS, self._probe)
        except TimeoutError:
            raise StoreError(
                f"{self.root} did not answer within {CHECK_SECONDS:.0f} seconds",
                hint="is it on a network file system that is gone?",
            ) from None

    def _probe(self) -> None:
        key = f"{_SCRATCH}/check-{uuid.uuid4().hex}"
        self.put_bytes(key, b"nemo-sky", if_absent=True)
        if self.put_bytes(key, b"again", if_absent=True):
            raise StoreError(f"{self.root}: its file system lets a file be created twice")
        self.delete_prefix(key)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A name for a new file, removed afterwards unless it was renamed."""
        folder = self.root / _SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / uuid.uuid4().hex
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, verb: str, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {verb} {path}: {error.strerror or error}",
                hint=f"artifacts are kept in {self.root}; `artifacts:` in nemo-sky.yaml says where",
            ) from error


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
