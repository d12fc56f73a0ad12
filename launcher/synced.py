"""Whether a file of a folder travels to the nodes with it. SkyPilot decides that, and it is asked.

It has two ways (0.14.1): rsync to a node (``utils/command_runner.py``), and an archive or a bucket by a list
of what is left out (``data/storage_utils.py``). Both read ``.skyignore`` or, where the folder has none,
``.gitignore``, and not quite alike.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from launcher.backends import sky_calls

IGNORE = ".skyignore"
_READ = (IGNORE, ".gitignore")


def takes(root: Path, file: Path) -> bool:
    """Whether either way takes ``file`` along when SkyPilot copies the folder ``root``.

    Raises Refused when SkyPilot, rsync or git cannot say.
    """
    top, name = Path(os.path.realpath(root)), name_in(root, file)
    if name is None:
        return False
    with sky_calls.calls(), tempfile.TemporaryDirectory() as place:
        from sky.data import storage_utils
        from sky.utils.command_runner import LocalProcessCommandRunner

        alone, copy = Path(place, "alone"), Path(place, "copy")
        _with_nothing_else(top, name, alone)
        if (top / IGNORE).exists():
            listed = storage_utils.get_excluded_files_from_skyignore(str(alone))
        else:
            listed = storage_utils.get_excluded_files_from_gitignore(str(top))
        left_out = {os.path.normpath(item) for item in listed}
        if left_out.isdisjoint(map(str, (name, *name.parents[:-1]))):
            return True
        LocalProcessCommandRunner().rsync(str(alone), str(copy), up=True, stream_logs=False)
        return (copy / name).exists()


def name_in(root: Path, file: Path) -> Path | None:
    """Where in ``root`` the file itself lies, for a link travels as a link; None when it lies elsewhere."""
    top, real = Path(os.path.realpath(root)), Path(os.path.realpath(file.expanduser()))
    return real.relative_to(top) if real.is_relative_to(top) else None


def _with_nothing_else(top: Path, name: Path, alone: Path) -> None:
    """The folder ``top`` as if an empty ``name`` were all that is in it, but for the files that may leave it
    out: to copy that is nothing, however large ``top`` is."""
    for folder in reversed(name.parents):
        (alone / folder).mkdir(parents=True, exist_ok=True)
        for read in (*_READ, ".git/info/exclude"):
            if (top / folder / read).is_file():
                (alone / folder / read).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(top / folder / read, alone / folder / read)
    (alone / name).touch()
