"""A trainer whose ranks agree at every step whether to save and end, as Megatron's do: a signal to one is
enough, and all save the same step.

    python agreeing.py SHARED_FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

shared, rank, ranks = Path(sys.argv[1]), int(os.environ.get("SKYPILOT_NODE_RANK", "0")), 2
folder = Path(os.environ["NEMO_SKY_CHECKPOINTS"])
stopping: list[int] = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))


def agree(step: int) -> bool:
    """Whether any rank was asked to stop."""
    mine = shared / f".{step}-{rank}"
    mine.write_text("stop" if stopping else "on")
    mine.replace(shared / f"{step}-{rank}")
    said = [shared / f"{step}-{other}" for other in range(ranks)]
    while not all(path.exists() for path in said):
        time.sleep(0.005)
    return any(path.read_text() == "stop" for path in said)


step = 1
while not agree(step):
    time.sleep(0.02)
    step += 1
    if rank == 0:
        with Path(os.environ["NEMO_SKY_METRICS"]).open("a") as file:
            file.write(f'{{"step": {step}, "loss": 1.0}}\n')
target = folder / f"iter_{step:07d}"
target.mkdir(parents=True)
(target / f"state-{rank}.json").write_text("{}")
stopping.append(1)
agree(step + 1)  # all have saved
if rank == 0:
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
print(f"rank {rank} saved at {step}", flush=True)
