"""Run a stage's own script, unchanged, on a CPU: ``torchrun ... on_cpu.py SCRIPT --config FILE``."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path


def main() -> None:
    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import torch

    from tests.bridge import cpu_shim, stubs

    torch.set_num_threads(1)
    stubs.install()
    cpu_shim.install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
