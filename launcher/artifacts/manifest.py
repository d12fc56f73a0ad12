"""Manifests: what a version of an artifact holds, by name, size and sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.artifacts.keys import StoreError, check_relative
from launcher.artifacts.uri import ArtifactRef


@dataclass(frozen=True)
class FileEntry:
    """One file: ``path`` relative to its artifact with ``/``, ``size`` in bytes, ``sha256`` in hex.

    A path that ends with ``/`` is an empty folder; it has size 0 and no object in the store.
    """

    path: str
    size: int
    sha256: str

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/")


@dataclass(frozen=True)
class Manifest:
    """One version of an artifact, as its ``vN.json`` in the store says it.

    ``base`` is the key in the store below which the files lie: a folder of the artifact's own, or a
    checkpoint that was published without being copied. ``inputs`` maps a stage's input names to pinned
    URIs. ``created_at`` is UTC in ISO 8601.
    """

    name: str
    version: int
    type: str
    created_at: str
    base: str
    files: tuple[FileEntry, ...]
    digest: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    producer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return str(ArtifactRef(self.name, version=self.version))

    def to_json(self) -> str:
        """The exact text of ``vN.json``."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "a manifest") -> Manifest:
        """Read what ``to_json`` wrote. Raises StoreError, naming ``source``, when it is damaged."""
        data = parse_json(text, source)
        try:
            return cls(
                name=str(data["name"]),
                version=int(data["version"]),
                type=str(data["type"]),
                created_at=str(data["created_at"]),
                base=str(data["base"]),
                files=read_entries(data["files"]),
                digest=str(data["digest"]),
                metadata=dict(data["metadata"]),
                inputs=dict(data["inputs"]),
                producer=dict(data["producer"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(source, error) from error

    @property
    def bytes(self) -> int:
        return total_bytes(self.files)


def total_bytes(files: Iterable[FileEntry]) -> int:
    """The size of all files in bytes."""
    return sum(entry.size for entry in files)


def digest_of(files: Iterable[FileEntry]) -> str:
    """One sha256 for the whole set: the same files give the same digest, wherever they lie."""
    lines = (f"{entry.sha256} {entry.size} {entry.path}\n" for entry in files)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def read_entries(rows: Any) -> tuple[FileEntry, ...]:
    """Entries from their JSON. Raises ValueError for a path that would leave its folder."""
    entries = tuple(FileEntry(str(row["path"]), int(row["size"]), str(row["sha256"])) for row in rows)
    for entry in entries:
        check_relative(entry.path.removesuffix("/"))
    return entries


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """A JSON object. Raises StoreError, naming ``source``, when ``text`` is not one."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise damaged(source, error) from error
    if not isinstance(data, dict):
        raise damaged(source, TypeError("it is not an object"))
    return data


def damaged(source: str, error: Exception) -> StoreError:
    """The refusal to use a manifest that cannot be read."""
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return StoreError(f"{source} is damaged: {reason}")
