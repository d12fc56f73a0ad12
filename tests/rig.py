"""A node with an agent to run on it, and what tests of processes need: for test_agent*.py and the like."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launcher.artifacts.store import Store, open_store
from launcher.lineage import journal

ROOT = Path(__file__).parents[1]
TRAINER = ROOT / "tests" / "fixtures" / "trainer.py"
_NOT_OURS = ("NEMO_SKY_", "SKYPILOT_", "MLFLOW_", "RAY_")


def until(condition: Callable[[], Any], seconds: float = 60.0, every: float = 0.02) -> Any:
    """What ``condition`` returns once it is true; it is asked ``every`` so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(every)
    return value


def processes_of(run_id: str) -> list[int]:
    """The living processes that carry the run's id in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environ = (entry / "environ").read_bytes() if entry.name.isdecimal() else b""
        except OSError:
            continue
        if f"NEMO_SKY_RUN_ID={run_id}\0".encode() in environ + b"\0":
            found.append(int(entry.name))
    return found


def stage_of_trainer(head: str) -> str:
    """The script of a stage that trains with the test trainer: ``head``, its block and first lines, goes
    before."""
    return head + TRAINER.read_text().replace("from __future__ import annotations\n", "")


@dataclass
class Rig:
    """A run's files on one node, and its agent around the test trainer."""

    folder: Path
    run_id: str
    env: dict[str, str] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return open_store(self.job["artifacts"], self.job.get("s3_endpoint"))

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def job_folder(self) -> Path:
        return self.folder / "job"

    def write(self) -> None:
        """Write the job's files as the launcher would."""
        self.job_folder.mkdir(parents=True, exist_ok=True)
        (self.job_folder / "job.yaml").write_text(yaml.safe_dump({"run_id": self.run_id, **self.job}))
        (self.job_folder / "train.yaml").write_text(yaml.safe_dump(self.config))

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_OURS)}
        own = {
            "NEMO_SKY_RUN_ID": self.run_id,
            "NEMO_SKY_WORK": str(self.work),
            "NEMO_SKY_STORE_RETRY_S": "0",
            "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
        }
        return {**kept, **own, **self.env}

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start the agent around a command; words alone are the test trainer's."""
        self.write()
        if command[0][0].isdigit():
            command = (sys.executable, str(TRAINER), *command)
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher.agent", "--job", str(self.job_folder), "--", *command],
            cwd=ROOT,
            env={**self.environment(), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *command: str, code: int = 0, **env: str) -> str:
        """Run the agent to its end and check its exit code; what it printed."""
        process = self.start(*command, **env)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == code, printed
        assert "Traceback" not in printed, printed
        return printed

    def finish(self, process: subprocess.Popen[str], code: int) -> str:
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == code, printed
        return printed

    def journal(self, attempt: int) -> list[dict[str, Any]]:
        """The attempt's events, from the store; none before the first flush."""
        return journal.read(self.store.get_bytes(f"runs/{self.run_id}/journal/{attempt}.jsonl") or b"")

    def env_of_task(self) -> dict[str, str]:
        """What a task's `envs` need, for the agent to be as it is under ``start``."""
        env = self.environment()
        return {key: value for key, value in env.items() if key.startswith(_NOT_OURS) and "WORK" not in key}

    def alive(self) -> list[int]:
        return processes_of(self.run_id)

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        return until(condition, seconds)


@contextmanager
def make_rig(folder: Path) -> Iterator[Rig]:
    """A run of the test trainer that makes a model, with a store in a folder and no MLflow."""
    job = {
        "family": "toy",
        "stage": "train",
        "launch": "direct",
        "experiment": "toy",
        "artifacts": str(folder / "store"),
        "tracking": None,
        "inputs": {},
        "output": {"name": "toy-model", "type": "model"},
        "checkpoints": {"keep": 2},
        "price_per_hour": 3600.0,
        "provenance": {"git_sha": "abc", "git_dirty": True, "fingerprint": "f" * 64, "image": None},
    }
    rig = Rig(folder, f"toy-{uuid.uuid4().hex[:8]}", job=job, config={"train": {"lr": 0.5}})
    try:
        yield rig
    finally:
        for process in rig.started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        until(lambda: not rig.alive())
