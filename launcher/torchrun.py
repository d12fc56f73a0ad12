"""torchrun, whose exit code is that of the rank that failed: ``python -m launcher.torchrun ARGUMENTS``.

torchrun's own is 1, whatever its ranks ended with (``torch.distributed.run`` of 2.13), so that nobody could
tell the codes apart which a recipe says need no retry. For stages that name some; others start torchrun.
"""

from __future__ import annotations

import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure


def code_of(failures: list[ProcessFailure]) -> int:
    """The shell's exit code of the first that failed by itself: torchrun ends the others with SIGTERM."""
    first = min(failures, key=lambda one: (one.exitcode == -signal.SIGTERM, one.timestamp))
    return first.exitcode if first.exitcode >= 0 else 128 - first.exitcode


def main() -> int:
    """Raises what torchrun raises where no rank has failed."""
    try:
        run.main()
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return code_of(list(error.failures.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
