"""The agent around a trainer of the standard library: what it restores, commits, publishes and records."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import launcher
from launcher.agent.rendezvous import Attempt
from launcher.artifacts import checkpoints, registry
from launcher.artifacts.store import FileStore
from launcher.artifacts.uri import ArtifactRef, parse_ref
from tests.rig import TRAINER, Rig

if TYPE_CHECKING:
    from tests.unit.conftest import S3Server

AGENT = Path(launcher.__file__).parent / "agent"


def model(rig: Rig) -> Any:
    return registry.resolve(rig.store, ArtifactRef("toy-model"))


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The events' types without those that come with time."""
    return [event["type"] for event in events if event["type"] not in ("metrics", "system")]


def points(events: list[dict[str, Any]]) -> dict[int, float]:
    """The loss by step."""
    found = [point for event in events if event["type"] == "metrics" for point in event["points"]]
    return {point["step"]: point["value"] for point in found if point["key"] == "loss"}


# A whole run


def test_a_run_is_committed_published_and_recorded(rig: Rig) -> None:
    printed = rig.run("25", "save=10", "sleep=0.05")
    # A busy agent skips to the newest: which one stands beside the last is not certain.
    assert [step.step for step in checkpoints.committed(rig.store, rig.run_id)] in ([25, 20], [25, 10], [25])
    made = model(rig)
    assert made.metadata["step"] == 25
    assert made.base == f"checkpoints/{rig.run_id}/iter_0000025", "not copied"
    assert (made.inputs, made.producer["run_id"], made.producer["attempt"]) == ({}, rig.run_id, 1)
    assert made.producer["git_sha"] == "abc"
    assert made.producer["versions"]["python"]
    assert made.producer["mlflow_run_id"] is None
    hours, cost = made.producer["hours"], made.producer["cost_usd"]
    assert cost == pytest.approx(hours * 3600, abs=0.01)
    assert cost > 0.3
    events = rig.journal(1)
    assert kinds(events)[0] == "attempt_started"
    assert kinds(events)[-2:] == ["output", "attempt_ended"]
    assert set(kinds(events)[1:-2]) == {"checkpoint"}
    assert events[0]["run"]["fingerprint"] == "f" * 64
    assert events[0]["params"] == {"train.lr": "0.5"}
    assert events[-1]["status"] == "succeeded"
    assert list(points(events)) == list(range(1, 26))
    assert events[-2]["manifest"]["version"] == 1
    assert "[nemo-sky] committed checkpoint 25 (" in printed
    assert "[nemo-sky] published art://toy-model:v1" in printed
    assert rig.alive() == []


def test_the_script_gets_its_contract(rig: Rig) -> None:
    rig.config = {
        "checkpoint": "${x}$NEMO_SKY_CHECKPOINTS/a",
        "all": ["$NEMO_SKY_OUTPUT", "$NEMO_SKY_INPUTS/data", {"w": "$NEMO_SKY_WORK"}],
        "lr": 1e-4,
        "none": None,
        "text": "1e-4",
    }
    rig.job |= {"output": None}
    code = "import os, json; print('ENV', json.dumps({k: v for k, v in os.environ.items() if 'NEMO' in k}))"
    printed = rig.run(sys.executable, "-c", code)
    env = json.loads(printed.split("ENV ")[1].splitlines()[0])
    names = ("CHECKPOINTS", "OUTPUT", "INPUTS", "METRICS", "METADATA", "CONFIG", "WORK")
    paths = {name: Path(env[f"NEMO_SKY_{name}"]) for name in names}
    assert all(path.is_relative_to(rig.work) for path in paths.values())
    assert env["NEMO_SKY_ATTEMPT"] == "1"
    assert yaml.safe_load(paths["CONFIG"].read_text()) == {
        "checkpoint": "${x}" + str(rig.work / "checkpoints" / "a"),
        "all": [str(rig.work / "output"), str(rig.work / "inputs/data"), {"w": str(rig.work)}],
        "lr": 1e-4,
        "none": None,
        "text": "1e-4",
    }


def test_a_run_is_cancelled_through_the_store_and_saves_first(rig: Rig) -> None:
    process = rig.start("10000", "save=10000", "sleep=0.02")
    assert process.stdout
    assert any("rank 0 starts" in line for line in process.stdout)
    Attempt(rig.store, rig.run_id, 1).stop("cancelled", 75, "cancelled")
    rig.finish(process, 75)
    saved = checkpoints.newest(rig.store, rig.run_id)
    assert saved is not None, "there was none before"
    end = rig.journal(1)[-1]
    assert (end["type"], end["status"]) == ("attempt_ended", "cancelled")
    assert end["reason"] == f"cancelled; checkpoint {saved.step} is committed"


def test_an_interrupted_run_resumes_and_ends_as_if_it_had_not_been(rig: Rig, tmp_path: Path) -> None:
    whole = rig.run("40", "save=10").split("final loss ")[1].split()[0]
    rig.run_id += "-b"
    process = rig.start("40", "save=10", "sleep=0.1")
    rig.until(lambda: checkpoints.newest(rig.store, rig.run_id))
    process.terminate()
    printed = rig.finish(process, 75)
    saved = checkpoints.newest(rig.store, rig.run_id)
    assert saved is not None
    assert f"saved at {saved.step}" in printed
    assert kinds(rig.journal(1))[-2:] == ["checkpoint", "attempt_ended"]
    assert rig.journal(1)[-1]["status"] == "interrupted"
    # Another node: nothing of the first is there.
    printed = rig.run("40", "save=10", NEMO_SKY_WORK=str(tmp_path / "other"))
    assert f"starts at {saved.step} of 40" in printed
    assert f"final loss {whole}" in printed
    events = rig.journal(2)
    assert kinds(events)[:2] == ["attempt_started", "restored"]
    assert min(points(events)) == saved.step + 1
    made = model(rig)
    assert made.producer["attempt"] == 2
    # It cost, at a dollar a second, the whole first attempt, and the second until its model was published.
    trained = [event for event in events if event["type"] == "checkpoint"][-1]["ts"] - events[0]["ts"]
    second = made.producer["cost_usd"] - rig.journal(1)[-1]["cost_usd"]
    assert trained - 0.1 <= second <= events[-1]["cost_usd"]  # the event is written after the commit


def test_what_was_not_committed_is_not_resumed(rig: Rig) -> None:
    """A checkpoint that only this node has would be one that other nodes lack."""
    rig.run("20", "save=10", "at=15", code=3)
    local = rig.work / "checkpoints" / "iter_0000015"
    local.mkdir()
    (local / "state-0.json").write_text("{}")
    (local.parent / "latest_checkpointed_iteration.txt").write_text("15")
    assert "starts at 10 of 20" in rig.run("20", "save=10")
    rig.run_id += "-none"
    assert "starts at 0 of 20" in rig.run("20", "save=30")


def test_a_directory_output_is_published_with_its_inputs(rig: Rig, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "text.jsonl").write_text("{}\n")
    meta = {"total_sequences": 1, "train": "text.jsonl"}
    registry.import_path(rig.store, data, "toy-data", "rl-data", meta)
    rig.job |= {
        "inputs": {"data": {"ref": "art://toy-data:v1"}, "raw": {"path": str(data)}},
        "output": {"name": "toy-report", "type": "eval-report"},
        "checkpoints": None,
        "price_per_hour": None,
    }
    rig.config = {
        "train": "${art:data,path}/${art:data,train}",
        "n": "${art:data,total_sequences}",
        "raw": "${art:raw}",
    }
    script = (
        'cat "$NEMO_SKY_INPUTS/data/text.jsonl" "$NEMO_SKY_INPUTS/raw/text.jsonl";'
        'mkdir "$NEMO_SKY_OUTPUT"; echo x > "$NEMO_SKY_OUTPUT/plot.png";'
        'echo "{\\"scores\\": {\\"acc\\": 0.5}}" > "$NEMO_SKY_METADATA"'
    )
    rig.run("bash", "-c", script)
    config = yaml.safe_load((rig.work / "config.yaml").read_text())
    assert config == {
        "train": f"{rig.work}/inputs/data/text.jsonl",
        "n": 1,
        "raw": f"{rig.work}/inputs/raw",
    }
    made = registry.resolve(rig.store, ArtifactRef("toy-report"))
    assert made.inputs == {"data": "art://toy-data:v1", "raw": f"file://{data}"}
    assert made.producer["cost_usd"] is None, "unknown is not free"
    assert [file.path for file in made.files] == ["plot.png"]
    uris = [item["uri"] for item in rig.journal(1)[0]["inputs"]]
    assert uris == ["art://toy-data:v1", f"file://{data}"]


def test_the_same_over_s3(rig: Rig, s3_server: S3Server, tmp_path: Path) -> None:
    store = s3_server.store()
    rig.job |= {"artifacts": store.url, "s3_endpoint": s3_server.endpoint}
    rig.run("20", "save=10", "at=15", code=3)
    assert "starts at 10 of 20" in rig.run("20", "save=10", NEMO_SKY_WORK=str(tmp_path / "other"))
    data = {"inputs": {"model": {"ref": "art://toy-model:latest"}}, "output": None, "checkpoints": None}
    rig.job |= data
    rig.run_id += "-eval"
    printed = rig.run("bash", "-c", "cat $NEMO_SKY_INPUTS/model/state-0.json")
    assert '"step": 20' in printed


# How it fails


@pytest.mark.parametrize(
    ("change", "command", "code", "message"),
    [
        ({}, "exit 9", 9, "the command exited with 9; no checkpoint was saved"),
        ({}, "kill -9 $$", 137, "the command was killed by signal 9"),
        ({}, "true", 65, "wrote no $NEMO_SKY_OUTPUT and its last checkpoint is not committed"),
        ({}, "mkdir $NEMO_SKY_OUTPUT; echo x > $NEMO_SKY_OUTPUT/w", 65, "'step' is missing"),
        ({}, "echo '{' > $NEMO_SKY_METADATA; mkdir $NEMO_SKY_OUTPUT", 65, "$NEMO_SKY_METADATA is not JSON"),
        ({}, "echo '[]' > $NEMO_SKY_METADATA", 65, "must hold a JSON object"),
        ({"output": {"name": "o", "type": "rl-data"}}, "true", 65, "wrote nothing to $NEMO_SKY_OUTPUT"),
        ({"inputs": {"d": {"ref": "art://toy-dtaa:v1"}}}, "true", 66, "no artifact 'toy-dtaa'"),
        ({"inputs": {"d": {"path": "/no/such"}}}, "true", 66, "there is no file or folder /no/such"),
        ({"artifacts": "/proc/nowhere"}, "true", 69, "cannot"),
        ({"output": {"name": "x"}}, "true", 2, "output must have a name and a type"),
    ],
)
def test_a_failure_has_its_code_and_its_reason(
    rig: Rig, change: dict[str, Any], command: str, code: int, message: str
) -> None:
    rig.job |= change
    printed = rig.run("bash", "-c", command, code=code)
    assert message in printed
    if code not in (2, 69):
        last = rig.journal(1)[-1]
        assert (last["status"], last["exit_code"]) == ("failed", code)
        assert message in last["reason"]


def test_a_command_that_cannot_start_says_so(rig: Rig) -> None:
    printed = rig.run("/no/such/program", code=127)
    assert "cannot run /no/such/program: No such file" in printed


def test_a_signal_before_the_command_ends_the_attempt(rig: Rig) -> None:
    """Node 0 waits for a node that never comes."""
    process = rig.start("10", SKYPILOT_NUM_NODES="2")
    rig.until(lambda: rig.store.get_bytes(f"runs/{rig.run_id}/attempts/1.json"))
    rig.until(lambda: (rig.work / "journal-1.jsonl").exists())
    process.terminate()
    assert "before the command ran" in rig.finish(process, 75)
    assert rig.journal(1)[-1]["status"] == "interrupted"


def test_a_store_that_fails_in_mid_run_is_waited_for(rig: Rig, tmp_path: Path) -> None:
    process = rig.start("60", "save=10", "sleep=0.05", NEMO_SKY_STORE_RETRY_S="20")
    rig.until(lambda: checkpoints.newest(rig.store, rig.run_id))
    store, away = tmp_path / "store", tmp_path / "away"
    store.rename(away)
    store.write_text("in the way")
    reader = process.stdout
    assert reader is not None
    while "cannot be committed now" not in reader.readline():
        assert process.poll() is None
    store.unlink()
    away.rename(store)
    rig.finish(process, 0)
    assert model(rig).metadata["step"] == 60
    assert list(points(rig.journal(1))) == list(range(1, 61))


def test_a_store_that_stays_away_fails_the_run_at_its_end(rig: Rig, tmp_path: Path) -> None:
    process = rig.start("70", "save=10", "sleep=0.05")
    rig.until(lambda: checkpoints.newest(rig.store, rig.run_id))
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("in the way")
    printed = rig.finish(process, 69)
    assert "rank 0 final loss" in printed, "the training went on"
    assert "its last checkpoint could not be committed" in printed


def test_a_tracker_that_is_down_costs_a_warning(rig: Rig) -> None:
    rig.job["tracking"] = "http://127.0.0.1:9"
    printed = rig.run("20", "save=10")
    assert printed.count("the run goes on without MLflow") == 1
    assert model(rig).producer["mlflow_run_id"] is None


# What it needs


def with_deadline(rig: Rig, seconds: float) -> None:
    """The job's nodes must be gone so long from now; it may save for a second."""
    lease = {"setup": 0, "check": 1000, "save": 1000, "teardown": 0}
    rig.job["money"] = {"deadline": round((time.time() + seconds) * 1000), "lease": lease}


def test_after_its_deadline_nothing_begins(rig: Rig) -> None:
    with_deadline(rig, 0.5)
    printed = rig.run("20", code=78)
    assert "deadline reached before the attempt began" in printed
    assert "rank 0 starts" not in printed
    assert rig.journal(1)[-1]["status"] == "deadline reached"


def test_what_does_not_end_for_its_deadline_is_ended(rig: Rig) -> None:
    """The command does not listen, so the time to save passes; the ledger is not needed for it."""
    with_deadline(rig, 6)
    began = time.time()
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    printed = rig.run(sys.executable, "-c", code, code=78)
    assert "on\n" in printed
    assert "the time to save is over" in printed
    assert time.time() - began < 50
    rig.until(lambda: rig.alive() == [])


def test_it_runs_without_the_launchers_libraries(rig: Rig, tmp_path: Path) -> None:
    """As in a vendor's container: an import of any of these fails."""
    blocked = ("typer", "click", "rich", "omegaconf", "sky", "torch", "ray", "boto3", "mlflow")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}:\n"
        "            raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    probe = subprocess.run(
        [sys.executable, "-c", "import rich"], env={"PYTHONPATH": str(tmp_path)}, capture_output=True
    )
    assert b"blocked: rich" in probe.stderr
    printed = rig.run("20", "save=10", PYTHONPATH=str(tmp_path))
    assert "published art://toy-model:v1" in printed


def test_its_own_imports_stay_within_its_bounds() -> None:
    allowed = {"agent", "artifacts", "lineage", "errors", "money"}
    for path in AGENT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                first, _, rest = name.partition(".")
                if first == "launcher":
                    assert rest.split(".")[0] in allowed, f"{path.name} imports {name}"
                else:
                    assert first in sys.stdlib_module_names | {"yaml", "mlflow", "psutil"}, (
                        f"{path.name} imports {name}"
                    )


def test_inputs_are_never_unpinned_in_the_journal(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    meta = {"total_sequences": 1, "train": "f"}
    store = FileStore(Path(rig.job["artifacts"]))
    registry.import_path(store, tmp_path / "f", "toy-data", "rl-data", meta)
    rig.job |= {"inputs": {"d": {"ref": "art://toy-data"}}, "output": None}
    rig.run("true")
    (item,) = rig.journal(1)[0]["inputs"]
    assert parse_ref(item["uri"]).version == 1
    assert item["digest"]


def test_a_job_that_began_nice_stays_as_nice(rig: Rig) -> None:
    """SkyPilot starts jobs at 15 and as a plain user, who may not go back to the watch's own 10."""
    process = rig.start("400", "save=10", "sleep=0.05")
    os.setpriority(os.PRIO_PROCESS, process.pid, 15)
    rig.until(lambda: any(event["type"] == "checkpoint" for event in rig.journal(1)))
    levels = {
        os.getpriority(os.PRIO_PROCESS, int(task.name))
        for task in Path(f"/proc/{process.pid}/task").iterdir()
    }
    process.terminate()
    assert min(levels) == 15
    rig.finish(process, 75)


def test_a_log_that_nobody_reads_any_more_ends_nothing(rig: Rig) -> None:
    """As on Slurm, where what carries the output of a job dies before the job does."""
    trainer = f"exec {sys.executable} {TRAINER} 30 save=10 sleep=0.02 > /dev/null 2>&1"
    process = rig.start("bash", "-c", trainer)
    assert process.stdout
    process.stdout.close()
    assert process.wait(60) == 0
    end = rig.journal(1)[-1]
    assert (end["type"], end["status"]) == ("attempt_ended", "succeeded")
