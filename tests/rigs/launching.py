"""What tests of `nemo-sky launch` on a rig share: a project whose store is S3, and questions to its runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Project, make_project
from tests.e2e.crash import until_committed
from tests.e2e.s3 import FAKE_CREDENTIALS, Gate, serve
from tests.mlflow_runs import in_mlflow
from tests.rig import stage_of_trainer, until
from tests.rigs.aws.rig import AwsRig
from tests.rigs.skyhome import SkyHome

HEAD = """\
# /// script
# [tool.runspec]
# name = "demo/train"
# [tool.runspec.run]
# launch = "direct"
# [tool.runspec.resources]
# gpus_per_node = 0
# [tool.nemo_sky]
# checkpoint_dir = "checkpoints"
# [tool.nemo_sky.output]
# name = "demo-model"
# type = "model"
# ///
import os, sys, yaml
given = yaml.safe_load(open(os.environ["NEMO_SKY_CONFIG"]))
sys.argv = [sys.argv[0], str(given["steps"]), f"sleep={given['sleep']}", f"save={given['save']}"]
"""
# Steps of a tenth of a second that take no processor: for a run that only has to be there for some time.
PACED = ("demo", "train", "-c", "default")
SHORT = ("tiny", "pretrain", "-c", "smoke", "data=null", "run.data=null")
# Twelve seconds on two quiet cores. A test that needs a run in a given state holds back the commit of a step:
# the run cannot end before it is let go, however slow the machine and SkyPilot are.
LONG = (*SHORT, "train.steps=600", "train.save_interval=60", "train.eval_interval=600")
REACHED_S = 400.0  # from a launch to its first checkpoints, on a busy machine


@dataclass(frozen=True)
class Launches:
    """A project that launches on a rig by its ``profile``."""

    project: Project
    profile: Path

    def launch(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Launch to the end; the outcome, with what the launch said under ``said``."""
        place = ("--cluster", str(self.profile), "--json")
        done = self.project.run("launch", *words, *place, code=code, timeout=600)
        outcome: dict[str, Any] = json.loads(done.stdout)[0] if done.stdout else {}
        return {**outcome, "said": done.stderr}

    def detach(self, *words: str) -> str:
        """Launch and leave; the run's id."""
        return str(self.launch(*words, "--detach")["run_id"])

    def show(self, run_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.project.run("runs", "show", run_id, "--json").stdout)
        return shown

    def follow(self, run_id: str) -> None:
        """Follow the run's log until a checkpoint is committed."""
        self._follow(run_id, until_committed)

    def follow_into_training(self, run_id: str) -> None:
        """Follow the log of a `PACED` run until it trains."""

        def trains(reader: subprocess.Popen[str]) -> None:
            assert reader.stdout
            assert any("rank 0 starts" in line for line in reader.stdout), "it never trained"

        self._follow(run_id, trains)

    def _follow(self, run_id: str, so_far: Callable[[subprocess.Popen[str]], object]) -> None:
        reader = self.project.start("runs", "logs", "-f", run_id)
        try:
            so_far(reader)
        finally:
            reader.kill()
            reader.communicate()

    def await_end(self, run_id: str, seconds: float = 400) -> None:
        """Wait until the agent of the run has written its end, without asking SkyPilot."""
        words = (sys.executable, "-c", AWAIT_END, run_id, str(seconds))
        subprocess.run(words, env=self.project.environment(), cwd=self.project.root, check=True)

    def finish(self, run_id: str, seconds: float = 400) -> dict[str, Any]:
        """Wait for the run's end without following it; what `runs show` says then."""
        # Its journal comes first: `runs show` imports SkyPilot, asks a node, and takes a core from the run.
        self.await_end(run_id, seconds)

        def ended() -> dict[str, Any] | None:
            shown = self.show(run_id)
            return shown if shown["status"] in ENDS else None

        return dict(until(ended, 180, every=5))

    def model(self, run_id: str, name: str = "tiny-pretrain-model") -> dict[str, Any]:
        """What the run published, read back from the store: its metadata and who made it. MLflow shows the
        same run, with every attempt and what came out."""
        listed = json.loads(self.project.run("artifacts", "list", "--json").stdout)
        found = [item for item in listed if item["name"] == name]
        shown = [
            json.loads(self.project.run("artifacts", "show", item["uri"], "--json").stdout) for item in found
        ]
        (mine,) = [item for item in shown if item["producer"]["run_id"] == run_id]
        run, attempts = in_mlflow(f"sqlite:///{self.project.root}/.nemo-sky/mlflow.db", run_id)
        assert run.info.status == "FINISHED"
        assert len(attempts) == len(self.show(run_id)["attempt_list"])
        assert len(run.outputs.model_outputs) == 1
        for metric, value in mine["metadata"].items():
            if metric in run.data.metrics:
                assert run.data.metrics[metric] == pytest.approx(value, abs=1e-3)
        return dict(mine)


# Waits until a run's last attempt has written an end after which none is begun.
AWAIT_END = """
import os, sys, time
from launcher.artifacts.store import open_store
from launcher.errors import UserError
from launcher.lineage import sync

until = time.monotonic() + float(sys.argv[2])
store = open_store(os.environ["NEMO_SKY_ARTIFACTS"])
while time.monotonic() < until:
    try:
        last = [attempt[-1] for attempt in sync.attempts(store, sys.argv[1])][-1:]
    except UserError:
        last = []
    if last and last[0].get("status") in ("succeeded", "cancelled", "budget reached", "deadline reached"):
        break
    time.sleep(1)
else:
    sys.exit(f"{sys.argv[1]} has not ended: {last}")
"""
ENDS = ("SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED", "BUDGET_REACHED", "DEADLINE_REACHED", "LOST")


def with_profile(on: Launches, name: str, **keys: Any) -> Launches:
    """The same launches by a profile of this ``name`` that says more."""
    profile = on.project.root / f"{name}.yaml"
    profile.write_text(yaml.safe_dump({"extends": str(on.profile), **keys}))
    return Launches(on.project, profile)


def eventually(condition: Callable[[], Any], seconds: float) -> Any:
    """What ``condition`` returns once it is true. Slurm or the emulated AWS answers it: not all the time."""
    return until(condition, seconds, every=0.5)


@contextmanager
def launching(home: SkyHome, profile: Path, root: Path) -> Iterator[tuple[Launches, Gate]]:
    """A fresh project at ``root`` with an empty bucket, for launches with SkyPilot's ``home``; and the gate
    before that bucket."""
    with serve("fake-bucket") as (endpoint, gate):
        env = {
            **home.own,
            **FAKE_CREDENTIALS,
            "NEMO_SKY_ARTIFACTS": f"s3://fake-bucket/{root.parent.name}",
            "AWS_ENDPOINT_URL": endpoint,
        }
        yield Launches(rig_project(root, **env), profile), gate


def aws_project(aws: AwsRig, root: Path) -> Project:
    """A fresh project at ``root`` whose store is a folder of its own in the rig's bucket."""
    return rig_project(
        root, **{**dict(aws.env), "NEMO_SKY_ARTIFACTS": f"s3://{aws.bucket}/{root.parent.name}"}
    )


def paced_loss(steps: int) -> float:
    """The final loss of a `PACED` run that skipped and repeated no step."""
    loss = 1.0
    for step in range(1, steps + 1):
        loss = loss * 0.99 + 0.001 * (step % 7)
    return loss


def rig_project(root: Path, **env: str) -> Project:
    """A fresh project with one stage more, `PACED`, whose trainer is the agent's tests' own."""
    project = make_project(root, **env)
    folder = root / "recipes" / "demo" / "train"
    (folder / "config").mkdir(parents=True)
    (folder / "train.py").write_text(stage_of_trainer(HEAD))
    (folder / "config" / "default.yaml").write_text("{steps: 600, sleep: 0.1, save: 20}\n")
    return project


def capped(project: Project, profile: Path, money: str) -> Launches:
    """Launches with leases as short as ``money`` says, by a profile under which a save takes no time."""
    with (project.root / "nemo-sky.yaml").open("a") as file:
        file.write(money)
    return with_profile(Launches(project, profile), "short", env={"NEMO_SKY_GRACE_S": 10})
