"""Folders that the rig made, and the only way it removes one."""

from __future__ import annotations

import shutil
from pathlib import Path

_MARK = ".nemo-sky-rig"


def make(folder: Path) -> Path:
    """Make a folder and mark it as the rig's own. It may hold nothing that the rig did not make."""
    if not (folder / _MARK).exists():
        folder.mkdir(parents=True)  # fails on what is there already
        (folder / _MARK).touch()
    return folder


def remove(folder: Path) -> None:
    """Remove a folder that ``make`` made, if it is there. Anything else is refused.

    The rig runs as root: a path that was worked out wrongly must never cost more than an error.
    """
    if not folder.exists():
        return
    if folder.is_symlink() or not (folder / _MARK).is_file():
        raise RuntimeError(f"{folder} is not a folder that the rig made: it stays")
    shutil.rmtree(folder)
