"""A tree of values under composition, which knows for every value where it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.config.files import KeyPath, Source
from launcher.errors import UserError


@dataclass(frozen=True)
class Mark:
    """Where a value is from: ``shown`` to people; ``where`` is file:line, None for an override."""

    shown: str
    where: str | None


class Tree:
    """Nested tables and lists. Paths are tuples of keys; a list's items are named by their index."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.marks: dict[KeyPath, Mark] = {}

    def mark(self, path: KeyPath) -> Mark:
        """The mark of ``path`` or of its nearest ancestor that has one."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks[path]

    def origin(self, path: KeyPath) -> Mark:
        """The mark of a value as a whole: the last override of one of its items, if there was any."""
        inside = [mark for key, mark in self.marks.items() if key[: len(path)] == path and not mark.where]
        return inside[-1] if inside else self.mark(path)

    def merge(self, source: Source, shown: str) -> None:
        """Lay a file's values over the tree; ``shown`` is how people call the file."""

        def lay(table: dict[str, Any], under: KeyPath) -> None:
            for key, value in table.items():
                path = (*under, key)
                line = source.line(path)
                mark = Mark(f"{shown}:{line}", f"{source.path}:{line}")
                if isinstance(value, dict) and isinstance(self.get(path), dict):
                    lay(value, path)
                else:
                    self._place(path, value, mark)
                    for inner in source.lines:
                        if len(inner) > len(path) and inner[: len(path)] == path:
                            at = source.lines[inner]
                            self.marks[inner] = Mark(f"{shown}:{at}", f"{source.path}:{at}")

        lay(source.values, ())

    def has(self, path: KeyPath) -> bool:
        return self._walk(path) is not _ABSENT

    def get(self, path: KeyPath) -> Any:
        """The value at ``path``, None when there is none."""
        value = self._walk(path)
        return None if value is _ABSENT else value

    def _walk(self, path: KeyPath) -> Any:
        node: Any = self.values
        for key in path:
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                return _ABSENT
        return node

    def put(self, path: KeyPath, value: Any, mark: Mark) -> None:
        """Set a value; a table that is not empty is merged into a table. Missing and null parents are made.

        Raises UserError when a parent cannot hold the key: it is a plain value, or a list without that item.
        """
        if isinstance(value, dict) and value and isinstance(self.get(path), dict):
            for key, item in value.items():
                self.put((*path, key), item, mark)
            return
        for length in range(1, len(path)):
            if self.get(path[:length]) is None:
                self._place(path[:length], {}, mark)
        self._place(path, value, mark)

    def _place(self, path: KeyPath, value: Any, mark: Mark) -> None:
        parent, key = self._walk(path[:-1]), path[-1]
        if isinstance(parent, dict):
            parent[key] = value
        elif isinstance(parent, list):
            if not key.isdecimal() or int(key) > len(parent):
                raise UserError(
                    f"{'.'.join(path[:-1])} is a list of {len(parent)}: {key!r} is not the index of an item"
                )
            parent[int(key) : int(key) + 1] = [value]
        else:
            raise UserError(f"{'.'.join(path[:-1])} is {parent!r}, not a section")
        self._forget(path)
        self.marks[path] = mark

    def delete(self, path: KeyPath) -> None:
        """Remove what :meth:`has` says is there."""
        parent = self._walk(path[:-1])
        if isinstance(parent, list):
            del parent[int(path[-1])]
        else:
            del parent[path[-1]]
        self._forget(path)

    def _forget(self, path: KeyPath) -> None:
        for old in [mark for mark in self.marks if mark[: len(path)] == path]:
            del self.marks[old]


_ABSENT = object()
