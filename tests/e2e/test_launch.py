"""The launch flow with a real agent, a real store and a real MLflow; only the trainer is small."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher import history, launch, plan, project, runs
from launcher.errors import Refused, RunFailed
from launcher.money import past
from tests.mlflow_runs import in_mlflow

ROOT = Path(__file__).parents[2]
PREP = """# /// script
# [tool.runspec]
# name = "demo/prep"
# [tool.runspec.run]
# launch = "direct"
# [tool.runspec.resources]
# gpus_per_node = 0
# [tool.nemo_sky.output]
# name = "demo-data"
# type = "eval-report"
# ///
import argparse, json, os, pathlib, yaml
parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--fail", action="store_true")
given = parser.parse_args()
values = yaml.safe_load(open(given.config))
print("score", values["score"], os.environ["SKYPILOT_NODE_RANK"], os.environ["GREETING"])
if given.fail:
    raise SystemExit("it broke on purpose")
out = pathlib.Path(values["output"])
out.mkdir(parents=True)
(out / "score.txt").write_text(str(values["score"]))
with open(os.environ["NEMO_SKY_METRICS"], "a") as metrics:
    metrics.write(json.dumps({"step": 1, "score": values["score"]}) + "\\n")
pathlib.Path(os.environ["NEMO_SKY_METADATA"]).write_text(json.dumps({"scores": {"score": values["score"]}}))
"""
TAKES_DATA = '# [tool.nemo_sky.inputs]\n# data = "art://demo-data"\n# ///\nimport'
REPORT = PREP.replace("demo/prep", "demo/report").replace("demo-data", "demo-report")
REPORT = REPORT.replace("# ///\nimport", TAKES_DATA)


@dataclass
class Place:
    """A project, and what launches in it said."""

    project: project.Project
    said: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    def launch(self, stage: str, *overrides: str, **more: Any) -> list[launch.Outcome]:
        self.said.clear()
        self.logged.clear()
        request = plan.Request("demo", stage, overrides=overrides, command="test", **more)
        return launch.launch(request, self.project, self.said.append, self.logged.append)

    def state(self, run_id: str) -> dict[str, Any]:
        return history.show(self.project, run_id)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One project for all tests of this module: MLflow takes seconds to make its database."""
    root = tmp_path_factory.mktemp("launch")
    (root / "nemo-sky.yaml").write_text("artifacts: store\ntracking: sqlite:///ml.db\n")
    (root / "clusters").symlink_to(ROOT / "clusters")
    for name, text in (("prep", PREP), ("report", REPORT)):
        folder = root / "recipes" / "demo" / name
        (folder / "config").mkdir(parents=True)
        (folder / "script.py").write_text(text)
        config = "score: 0.5\noutput: ${node:output}\nrun: {env: {GREETING: hello}}\n"
        (folder / "config" / "default.yaml").write_text(config)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        return Place(project.read(root))


def test_all_stages_are_made_once_and_then_skipped(place: Place) -> None:
    made = place.launch("all")
    assert [outcome.status for outcome in made] == ["made", "made"]
    assert "score 0.5 0 hello" in place.logged
    report = made[1].output
    assert report
    assert report.inputs == {"data": "art://demo-data:v1"}
    assert report.producer["cost_usd"] == 0
    store = launch.open_store(place.project)
    [[run], _] = past.past_of(store, "demo/prep", "default", {})
    assert (run.run_id, run.gpu, run.nodes) == (made[0].run_id, None, 1)
    assert run.hours
    again = place.launch("all")
    assert [outcome.status for outcome in again] == ["skipped", "skipped"]
    assert again[1].output == report
    assert "already made by" in " ".join(place.said)


def test_a_changed_config_is_another_run_and_its_consumer_too(place: Place) -> None:
    outcomes = place.launch("all", "prep.score=0.75")
    assert [outcome.status for outcome in outcomes] == ["made", "made"]
    assert outcomes[1].output
    assert outcomes[1].output.inputs == {"data": outcomes[0].output and outcomes[0].output.uri}
    back = place.launch("all")
    assert [outcome.status for outcome in back] == ["skipped", "skipped"]
    assert back[1].output
    assert back[1].output.inputs == {"data": "art://demo-data:v1"}, "not the newest, but its own"


def test_force_makes_it_again_without_a_second_copy_of_the_bytes(place: Place) -> None:
    (outcome,) = place.launch("prep", force=True)
    assert outcome.status == "made"
    assert outcome.output
    first = place.launch("prep")[0].output
    assert first
    assert outcome.output.digest == first.digest
    assert len(list((place.project.root / "store/artifacts/demo-data/data").iterdir())) == 2


def test_a_failure_shows_its_last_lines_and_the_same_command_resumes(place: Place) -> None:
    failing = {"script_args": ("--fail",)}
    with pytest.raises(RunFailed) as caught:
        place.launch("prep", **failing)
    assert "it broke on purpose" in str(caught.value)
    assert "runs logs" in str(caught.value)
    with pytest.raises(RunFailed):
        place.launch("prep", **failing)
    assert "resuming" in " ".join(place.said)
    newest = runs.every(place.project.runs)[0]
    shown = place.state(newest.run_id)
    assert shown["status"] == "FAILED"
    assert [attempt["status"] for attempt in shown["attempt_list"]] == ["failed", "failed"]
    assert shown["output"] is None


def test_two_nodes_mark_their_lines(place: Place) -> None:
    place.launch("prep", "score=0.25", nodes=2)
    assert "[node 0] score 0.25 0 hello" in place.logged
    assert "[node 1] score 0.25 1 hello" in place.logged


def test_the_run_folder_names_the_job_and_holds_no_secret(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "fake-secret-value")
    (outcome,) = place.launch("prep", "score=0.125")
    folder = runs.directory(place.project.runs, outcome.run_id)
    for name in ("run.json", "state.json", "task.yaml", "job/job.yaml", "job/train.yaml"):
        assert (folder / name).exists(), name
    written = b"".join(path.read_bytes() for path in place.project.root.rglob("*") if path.is_file())
    assert b"fake-secret-value" not in written


def test_mlflow_has_each_event_once(place: Place) -> None:
    import mlflow

    (outcome,) = place.launch("prep", "score=0.0625")
    assert history.track(place.project, runs.load(place.project.runs, outcome.run_id)) is None
    client = mlflow.MlflowClient(place.project.tracking)
    home = client.get_experiment_by_name("demo").experiment_id
    (run,) = client.search_runs([home], f"tags.`nemo_sky.run_id` = '{outcome.run_id}'")
    assert [point.value for point in client.get_metric_history(run.info.run_id, "score")] == [0.0625]
    assert run.data.params["score"] == "0.0625"
    assert len(run.outputs.model_outputs) == 1


def test_mlflow_goes_away_in_the_middle_of_a_run_and_comes_back(place: Place) -> None:
    database = place.project.root / "ml.db"
    script = place.project.root / "recipes/demo/prep/script.py"
    away = database.with_name("ml.away")
    lose = f"import shutil; shutil.copy({str(database)!r}, {str(away)!r})\n"
    lose += f"pathlib.Path({str(database)!r}).write_text('no database' * 100)\n"
    script.write_text(PREP + lose)
    try:
        (outcome,) = place.launch("prep", "score=0.03125")
        assert outcome.status == "made"
        (said,) = [line for line in place.said if "MLflow" in line]
        assert f"`nemo-sky runs show {outcome.run_id}` tries again" in said
        assert "not a database" in place.state(outcome.run_id)["untracked"]
    finally:
        script.write_text(PREP)
        database.write_bytes(away.read_bytes())
    assert place.state(outcome.run_id)["untracked"] is None
    run, _ = in_mlflow(place.project.tracking, outcome.run_id)
    assert (run.info.status, run.data.metrics["score"]) == ("FINISHED", 0.03125)


def test_what_must_not_be_tried_again_is_trained_once_whatever_the_retries(place: Place) -> None:
    """The cloud begins it again by count alone; the agent of the next attempt refuses."""
    script, count = place.project.root / "recipes/demo/prep/script.py", place.project.root / "count"
    script.write_text(f"{PREP}open({str(count)!r}, 'a').write('x'); raise SystemExit(66)\n")
    try:
        with pytest.raises(RunFailed, match="not tried again: the command exited with 66"):
            place.launch("prep", cluster="fake", managed=True, retries=2)
    finally:
        script.write_text(PREP)
    assert count.read_text() == "x"
    shown = place.state(runs.every(place.project.runs)[0].run_id)
    assert (shown["status"], len(shown["attempt_list"])) == ("FAILED", 3)
    (refusal,) = [line for line in place.logged if "attempt 3 failed" in line]
    assert refusal.count("not tried again") == 1


def test_an_active_run_is_not_started_twice(place: Place) -> None:
    script = place.project.root / "recipes/demo/prep/script.py"
    script.write_text(PREP + "import time; print('waiting', flush=True); time.sleep(600)\n")
    (outcome,) = place.launch("prep", detach=True)
    assert outcome.status == "submitted"
    with pytest.raises(Refused, match="this very run"):
        place.launch("prep")
    from launcher import backends

    folder = runs.directory(place.project.runs, outcome.run_id)
    local = backends.get("local")
    for line in local.follow(folder):
        if "waiting" in line:
            break
    local.cancel(folder)
    assert local.status(folder).status == "CANCELLED"
    shown = json.dumps(place.state(outcome.run_id))
    assert "interrupted" in shown or "cancelled" in shown
