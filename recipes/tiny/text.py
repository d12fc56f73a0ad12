"""Real text: the documents of a folder, of JSONL, or of Python's own library.

Every document that cannot be used is a value too, with the reason, so that it can be counted.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.tiny.settings import require

STDLIB = "stdlib"
# Installed packages and tests are not the library; some tests are broken on purpose.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """Where text is from.

    ``path`` is a folder, a file, or ``stdlib``. ``pattern`` picks files of a folder. Of a ``.jsonl`` file
    each line is a document, its text under ``text_key``; any other file is one document. ``max_bytes``
    bounds what is read, None takes all; the files are then a sample that depends on the seed.
    """

    path: str = STDLIB
    pattern: str = "**/*.py"
    text_key: str = "text"
    max_bytes: int | None = None


@dataclass(frozen=True)
class Document:
    """One document. ``bad`` says why it cannot be used, and is empty when it can."""

    name: str
    text: str
    bad: str = ""


@dataclass(frozen=True)
class Unit:
    """One file to read; ``limit`` bounds the bytes taken from a JSONL file."""

    path: str
    name: str
    limit: int | None = None


def uniform(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on nothing but ``seed`` and ``key``."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # as many bits as a float holds: never 1


def root_of(source: Source) -> Path:
    return Path(sysconfig.get_path("stdlib")) if source.path == STDLIB else Path(source.path)


def units(source: Source, seed: int) -> list[Unit]:
    """The files of a source in their seeded order, as many as ``max_bytes`` allows (at least one).

    Raises ConfigError when there is nothing to read.
    """
    root = root_of(source)
    require(root.exists(), f"source.path: there is no file or folder {root}")
    require(source.max_bytes is None or source.max_bytes > 0, "source.max_bytes must be more than 0")
    if root.is_file():
        files = {root.name: root}
    else:
        # A link to nowhere is kept: it is a document that cannot be read, and is counted as one.
        files = {str(path.relative_to(root)): path for path in root.glob(source.pattern) if not path.is_dir()}
        if source.path == STDLIB:
            files = {name: path for name, path in files.items() if not _NOT_LIBRARY & {*Path(name).parts}}
    require(bool(files), f"source.pattern: no file in {root} matches {source.pattern!r}")
    chosen: list[Unit] = []
    left = source.max_bytes
    for name in sorted(files, key=lambda name: (uniform(seed, name), name)):
        size = size_of(files[name])
        if left is None:
            chosen.append(Unit(str(files[name]), name))
            continue
        if _is_jsonl(name):
            chosen.append(Unit(str(files[name]), name, min(left, size)))
        elif size <= left or not chosen:
            chosen.append(Unit(str(files[name]), name))
        else:
            continue
        left -= min(left, size)
        if left == 0:
            break
    return chosen


def size_of(path: Path) -> int:
    """In bytes; 0 for what cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def documents(unit: Unit, text_key: str) -> Iterator[Document]:
    """The documents of one file, bad ones included."""
    try:
        data = Path(unit.path).read_bytes() if unit.limit is None else _head(unit)
    except OSError as error:
        yield Document(unit.name, "", f"unreadable: {error.strerror}")
        return
    if not _is_jsonl(unit.name):
        yield _decoded(unit.name, data)
        return
    for number, line in enumerate(data.splitlines(), start=1):
        yield _from_line(f"{unit.name}:{number}", line, text_key)


def _is_jsonl(name: str) -> bool:
    return name.endswith((".jsonl", ".ndjson"))


def _head(unit: Unit) -> bytes:
    """Whole lines, at least one, until ``limit`` bytes are reached."""
    taken: list[bytes] = []
    with Path(unit.path).open("rb") as file:
        for line in file:
            taken.append(line)
            if file.tell() >= (unit.limit or 0):
                break
    return b"".join(taken)


def _decoded(name: str, data: bytes) -> Document:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Document(name, "", "not UTF-8")
    return Document(name, text) if text.strip() else Document(name, "", "empty")


def _from_line(name: str, line: bytes, text_key: str) -> Document:
    if not line.strip():
        return Document(name, "", "empty")
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return Document(name, "", "not UTF-8")
    except ValueError:
        return Document(name, "", "not JSON")
    text = row.get(text_key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        return Document(name, "", f"no text under {text_key!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return Document(name, "", "not UTF-8")
    return Document(name, text) if text.strip() else Document(name, "", "empty")
