"""Where this folder is on PYTHONPATH, Python runs this first: it puts a CPU under the scripts of recipes/.

Every other program of the run, such as the agent and torchrun, is left as it is. A machine with a GPU ends
the script here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def is_recipe(words: list[str]) -> bool:
    """Whether a command line runs a script of recipes/, as torchrun and the agent start one."""
    program = Path(next((word for word in words[1:] if not word.startswith("-")), ""))
    return program.suffix == ".py" and "recipes" in program.parts


if is_recipe(sys.orig_argv):
    from tests.bridge import cpu_shim

    try:
        cpu_shim.install()
    except cpu_shim.GpuFoundError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # an exception here would only be printed
