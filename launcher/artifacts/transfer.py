"""Whole folders to and from a store: several files at once, every one verified by size and sha256."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from launcher.artifacts.keys import EMPTY_SHA256, StoreError, sha256_of
from launcher.artifacts.manifest import FileEntry, total_bytes
from launcher.artifacts.store import Store
from launcher.errors import Refused, UserError

# Called with (bytes done, bytes in all), from several threads but never from two at once.
Progress = Callable[[int, int], None]

RESERVED = ".nemo-sky"
_FILES_AT_ONCE = 8

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def scan(path: Path) -> dict[str, Path | None]:
    """What stands in a folder, or a single file: relative path -> file; ``path/`` -> None for empty folders.

    Raises UserError for whatever cannot be kept: pipes, sockets, devices, links to folders or to nothing,
    names that are not UTF-8, and a folder without any file.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if not path.is_dir():
        _refuse_unless_regular(path)
        return {path.name: path}
    found: dict[str, Path | None] = {}
    for place, folders, names in os.walk(path, onerror=_raise):
        here = Path(place)
        for name in folders:
            if (here / name).is_symlink():
                raise UserError(f"{here / name} is a link to a folder", hint="put the folder itself there")
        for name in names:
            _refuse_unless_regular(here / name)
            found[_relative(here / name, path)] = here / name
        if not folders and not names and here != path:
            found[_relative(here, path) + "/"] = None
    if not any(found.values()):
        raise UserError(f"{path} holds no file: there is nothing to keep")
    if any(name == RESERVED or name.startswith(f"{RESERVED}/") for name in found):
        raise UserError(f"{path / RESERVED}: this name is nemo-sky's own", hint="use another name")
    return dict(sorted(found.items()))


def sizes(found: dict[str, Path | None]) -> dict[str, int]:
    """Bytes of each scanned path."""
    return {name: path.stat().st_size if path else 0 for name, path in found.items()}


def hash_files(found: dict[str, Path | None]) -> tuple[FileEntry, ...]:
    """Entries of scanned files without moving them."""

    def entry(name: str) -> FileEntry:
        path = found[name]
        return FileEntry(name, path.stat().st_size, sha256_of(path)) if path else _folder(name)

    return tuple(in_parallel(entry, list(found)))


def upload(
    store: Store, base: str, found: dict[str, Path | None], progress: Progress | None = None
) -> tuple[FileEntry, ...]:
    """Write scanned files below the key ``base``. The entries say what was written, hashed while reading."""
    meter = _Meter(sum(sizes(found).values()), progress)

    def put(name: str) -> FileEntry:
        path = found[name]
        if path is None:
            return _folder(name)
        return replace(store.put_file(f"{base}/{name}", path, meter.advance), path=name)

    return tuple(in_parallel(put, list(found)))


def download(
    store: Store, base: str, files: Sequence[FileEntry], folder: Path, progress: Progress | None = None
) -> None:
    """Make ``folder`` hold exactly ``files``, read from below the key ``base`` and verified.

    Work goes on in ``.<name>.partial`` beside it: after a crash the files there that are right are kept.
    An existing ``folder`` is replaced, but not touched before all is here. Raises StoreError naming the
    first file that is missing, short or altered, and Refused when the disk is too small.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    meter = _Meter(total_bytes(files), progress)
    wanted = {entry.path: entry for entry in files}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _drop_others(partial, wanted)
        _refuse_if_full(partial, files)
        for parent in sorted({(partial / entry.path).parent for entry in files}):
            parent.mkdir(parents=True, exist_ok=True)
        for entry in files:
            if entry.is_folder:
                (partial / entry.path).mkdir(exist_ok=True)

        def get(entry: FileEntry) -> None:
            target = partial / entry.path
            if target.is_file() and target.stat().st_size == entry.size and sha256_of(target) == entry.sha256:
                meter.advance(entry.size)
                return
            arriving = target.with_name(f"{target.name}.arriving")
            key = f"{base}/{entry.path}"
            store.get_file(key, arriving, meter.advance)
            verify(arriving, entry, store.uri(key))
            arriving.replace(target)

        in_parallel(get, [entry for entry in files if not entry.is_folder])
        remove(folder)
        partial.rename(folder)
    except OSError as error:
        raise Refused(f"cannot write {folder}: {error.strerror or error}") from error


def verify(path: Path, entry: FileEntry, source: str) -> None:
    """Raises StoreError, naming ``source``, unless the file at ``path`` is what the manifest says."""
    size = path.stat().st_size
    if size != entry.size:
        raise StoreError(f"{source} is damaged: it has {size} bytes, its manifest says {entry.size}")
    if sha256_of(path) != entry.sha256:
        raise StoreError(f"{source} is damaged: its sha256 is not the one in its manifest")


def holds_exactly(folder: Path, files: Iterable[FileEntry]) -> bool:
    """Whether a folder has these files, with their content, and no other."""
    if not folder.is_dir():
        return False
    try:
        found = scan(folder)
    except UserError:
        return False
    wanted = {entry.path: entry for entry in files}
    if sizes(found) != {entry.path: entry.size for entry in wanted.values()}:
        return False
    return all(wanted[entry.path] == entry for entry in hash_files(found))


def in_parallel(work: Callable[[_Job], _Result], jobs: Sequence[_Job]) -> list[_Result]:
    """The results in order; after the first failure nothing more is started, and it is raised."""
    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="transfer") as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Meter:
    """Adds up what threads have moved and tells it in order."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()

    def advance(self, amount: int) -> None:
        if self._progress is None:
            return
        with self._lock:
            self._done += amount
            self._progress(self._done, self._total)


def _folder(name: str) -> FileEntry:
    return FileEntry(name, 0, EMPTY_SHA256)


def _relative(path: Path, root: Path) -> str:
    text = path.relative_to(root).as_posix()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!r}: its name is not UTF-8") from None
    return text


def _refuse_unless_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path} is a link to nothing") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is not a regular file", hint="an artifact holds files and folders only")


def _refuse_if_full(folder: Path, files: Sequence[FileEntry]) -> None:
    needed = sum(entry.size for entry in files if not (folder / entry.path).exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Refused(
            f"{folder.parent} has {free:,} bytes free; {needed:,} are needed",
            hint="free some space, or ask for a larger disk (disk_gb in the recipe or the cluster profile)",
        )


def _drop_others(folder: Path, wanted: dict[str, FileEntry]) -> None:
    """Remove what an earlier, other download left: its files, then its folders."""
    for place, _, names in os.walk(folder, topdown=False, onerror=_raise):
        for name in names:
            if (Path(place) / name).relative_to(folder).as_posix() not in wanted:
                (Path(place) / name).unlink()
        if Path(place) != folder and not any(Path(place).iterdir()):
            Path(place).rmdir()


def remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _raise(error: OSError) -> None:
    raise Refused(f"cannot read {error.filename}: {error.strerror}") from error
