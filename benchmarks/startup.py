"""Start-up of `nemo-sky` beside `sky --help`, in one run on one machine: medians and ratios.

    python benchmarks/startup.py [--repeats 15]

Targets: `nemo-sky --help` at most 0.1 of `sky --help`, `nemo-sky render tiny pretrain` at most 0.2.
The commands take turns, so that a busy moment of the machine hits them alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
PEER = "sky --help"
COMMANDS: dict[str, list[Path | str]] = {
    PEER: [BIN / "sky", "--help"],
    "nemo-sky --help": [BIN / "nemo-sky", "--help"],
    "nemo-sky launch --help": [BIN / "nemo-sky", "launch", "--help"],
    "nemo-sky render tiny pretrain": [BIN / "nemo-sky", "render", "tiny", "pretrain"],
    "nemo-sky config show tiny pretrain": [BIN / "nemo-sky", "config", "show", "tiny", "pretrain"],
    "nemo-sky runs list": [BIN / "nemo-sky", "runs", "list"],
}
TARGETS = {"nemo-sky --help": 0.1, "nemo-sky render tiny pretrain": 0.2}


def seconds(command: list[Path | str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    for command in COMMANDS.values():  # once, so that byte code and page cache are warm for all
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    peer = statistics.median(times[PEER])
    print(f"{'command':36} {'median ms':>10} {'ratio':>7} {'target':>7}")
    for name, taken in times.items():
        median = statistics.median(taken)
        target = f"{TARGETS[name]:7.2f}" if name in TARGETS else ""
        print(f"{name:36} {median * 1000:10.0f} {median / peer:7.3f} {target}")


if __name__ == "__main__":
    main()
