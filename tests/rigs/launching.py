"""What tests of `nemo-sky launch` on a rig share: a project whose store is S3, and questions to its runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Project, make_project
from tests.e2e.crash import until_committed
from tests.e2e.s3 import FAKE_CREDENTIALS, Gate, serve
from tests.mlflow_runs import in_mlflow
from tests.rig import until
from tests.rigs.aws.rig import AwsRig
from tests.rigs.skyhome import SkyHome

SHORT = ("tiny", "pretrain", "-c", "smoke", "data=null", "run.data=null")
# Some twenty seconds on two quiet cores. A test that needs a run in a given state holds back the commit of a
# step: the run cannot end before it is let go, however slow the machine and SkyPilot are.
LONG = (*SHORT, "train.steps=1000", "train.save_interval=100", "train.eval_interval=1000")
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
        reader = self.project.start("runs", "logs", "-f", run_id)
        try:
            until_committed(reader)
        finally:
            reader.kill()
            reader.communicate()

    def finish(self, run_id: str, seconds: float = 400) -> dict[str, Any]:
        """Wait for the run's end without following it; what `runs show` says then."""
        # Each time a process that imports SkyPilot and asks a node: more often, it takes a core from the run.
        until(lambda: self.show(run_id)["status"] in ENDS, seconds, every=15)
        return self.show(run_id)

    def model(self, run_id: str) -> dict[str, Any]:
        """What the run published, read back from the store: its metadata and who made it. MLflow shows the
        same run, with every attempt and what came out."""
        listed = json.loads(self.project.run("artifacts", "list", "--json").stdout)
        found = [item for item in listed if item["name"] == "tiny-pretrain-model"]
        shown = [
            json.loads(self.project.run("artifacts", "show", item["uri"], "--json").stdout) for item in found
        ]
        (mine,) = [item for item in shown if item["producer"]["run_id"] == run_id]
        run, attempts = in_mlflow(f"sqlite:///{self.project.root}/.nemo-sky/mlflow.db", run_id)
        assert run.info.status == "FINISHED"
        assert len(attempts) == len(self.show(run_id)["attempt_list"])
        assert len(run.outputs.model_outputs) == 1
        assert run.data.metrics["valid_loss"] == pytest.approx(mine["metadata"]["valid_loss"], abs=1e-3)
        return dict(mine)


ENDS = ("SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED", "BUDGET_REACHED", "DEADLINE_REACHED", "LOST")


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
        yield Launches(make_project(root, **env), profile), gate


def aws_project(aws: AwsRig, root: Path) -> Project:
    """A fresh project at ``root`` whose store is a folder of its own in the rig's bucket."""
    return make_project(
        root, **{**dict(aws.env), "NEMO_SKY_ARTIFACTS": f"s3://{aws.bucket}/{root.parent.name}"}
    )


def capped(project: Project, profile: Path, money: str) -> Launches:
    """Launches with leases as short as ``money`` says, by a profile under which a save takes no time."""
    with (project.root / "nemo-sky.yaml").open("a") as file:
        file.write(money)
    short = project.root / "short.yaml"
    short.write_text(f"extends: {profile}\nenv: {{NEMO_SKY_GRACE_S: 10}}\n")
    return Launches(project, short)
