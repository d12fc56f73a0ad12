"""What travels to the nodes beside the working directory: the run's own files and, where the project has no
copy of it, the launcher.

Both lie under the state folder, which git ignores. SkyPilot asks git what to leave out of a folder that it
uploads, and git fails in a folder that is ignored as a whole ("directory entry not superset of prefix", git
2.39); a folder with a ``.skyignore`` it takes as that says (SkyPilot 0.14.1, ``data/storage_utils.py``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from launcher import runs

IGNORE_FILE = ".skyignore"
_NOTHING = "# Every file of this folder travels.\n"


def files_of(run_dir: Path) -> None:
    """Make the folder of ``job.yaml`` and ``train.yaml`` ready to be uploaded."""
    runs.write_text(run_dir / "job" / IGNORE_FILE, _NOTHING)


def copy_of_launcher(run_dir: Path) -> None:
    """Make a copy of this package for the nodes: wherever it is installed, that may be ignored by git too."""
    copy = run_dir / "code" / "launcher"
    if not copy.exists():
        leave_out = shutil.ignore_patterns("__pycache__")
        half = run_dir / "code" / ".launcher"
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(Path(__file__).parent, half, ignore=leave_out)
        runs.write_text(half / IGNORE_FILE, _NOTHING)
        half.rename(copy)
