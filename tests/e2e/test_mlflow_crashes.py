"""A journal that is applied, interrupted anywhere and applied again gives one and the same MLflow."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.lineage import mlflow_view
from launcher.lineage.journal import Event
from launcher.lineage.mlflow_client import connected
from tests.unit.mlflow_events import (
    START,
    ended,
    journal_of,
    manifest,
    metrics,
    started,
)


class Killed(BaseException):
    """What stands for the death of the process."""


@contextmanager
def dying(writes: int) -> Iterator[list[int]]:
    """MLflow's client dies right after its ``writes``-th write took effect; gives the count so far."""
    from mlflow import MlflowClient

    names = [
        name
        for name in vars(MlflowClient)
        if name.startswith(("create_", "log_", "set_", "update_", "finalize_", "delete_"))
    ]
    count = [0]

    def wrapped(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            count[0] += 1
            if count[0] == writes:
                raise Killed
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(MlflowClient, name, wrapped(getattr(MlflowClient, name)))
        yield count


def story(tag: str) -> list[list[Event]]:
    """The journals of a run of three attempts that touches every kind of event; names end with ``tag``."""
    run_id = f"run-{tag}"
    inputs = [
        {
            "name": "data",
            "uri": f"art://data-{tag}:v2",
            "type": "pretrain-data",
            "digest": "d" * 64,
            "base_uri": "/store/d",
        },
        {
            "name": "model",
            "uri": f"art://model-{tag}:v1",
            "type": "model",
            "digest": "e" * 64,
            "base_uri": "s3://b/m",
        },
    ]
    made = manifest(f"out-{tag}", producer={"run_id": run_id})
    return [
        journal_of(
            started(run_id, inputs=inputs),
            metrics(loss=3.5, nan=math.nan),
            {"type": "system", "points": [{"key": "cpu", "value": 50.0, "step": 1, "ts": START}]},
            {"type": "checkpoint", "step": 100, "uri": "u", "bytes": 10, "seconds": 0.5},
            ended("interrupted"),
        ),
        journal_of(started(run_id, 2, inputs=inputs, params={"train.lr": "1"}), at=START + 100),
        journal_of(
            started(run_id, 3, inputs=inputs),
            {"type": "restored", "step": 100, "uri": "u"},
            metrics(loss=3.5, late=math.inf),
            {"type": "output", "manifest": json.loads(made.to_json())},
            ended(),
            at=START + 200,
        ),
    ]


def state(tracking: str, tag: str) -> Any:
    """All that MLflow shows of a story, without the ids that it makes up."""
    with connected(tracking) as client:
        everywhere = [item.experiment_id for item in client.search_experiments()]
        runs = client.search_runs(everywhere, f"tags.`nemo_sky.run_id` = 'run-{tag}'")
        runs += client.search_runs(
            everywhere, f"tags.`nemo_sky.attempt_of` = 'run-{tag}'", order_by=["start_time"]
        )
        names = {run.info.run_id: run.info.run_name for run in runs}
        models = client.search_logged_models(everywhere, f"tags.`art.uri` LIKE '%-{tag}:%'", max_results=50)
        names |= {model.model_id: model.tags["art.uri"] for model in models}
        versions = [
            item
            for name in (f"data-{tag}", f"model-{tag}", f"out-{tag}")
            for item in client.search_model_versions(f"name = '{name}'")
        ]
        found = [
            [
                (
                    run.info.run_name,
                    run.info.status,
                    run.info.start_time,
                    run.info.end_time,
                    run.data.params,
                    {key: names.get(value, value) for key, value in run.data.tags.items()},
                    {
                        key: [
                            (repr(m.value), m.step, m.timestamp) for m in client.get_metric_history(id_, key)
                        ]
                        for key in run.data.metrics
                    },
                    sorted(item.dataset.name for item in run.inputs.dataset_inputs),
                    sorted(names[item.model_id] for item in run.inputs.model_inputs),
                    sorted((names[item.model_id], item.step) for item in run.outputs.model_outputs),
                )
                for id_, run in ((run.info.run_id, client.get_run(run.info.run_id)) for run in runs)
            ],
            sorted((m.name, str(m.status), names.get(m.source_run_id), m.params, m.tags) for m in models),
            sorted(
                (v.name, int(v.version), names.get(v.run_id), {k: names.get(t, t) for k, t in v.tags.items()})
                for v in versions
            ),
        ]
    return json.loads(json.dumps(found).replace(tag, "TAG"))


@pytest.fixture(scope="module")
def told(tracking: str) -> tuple[Any, int]:
    """What MLflow shows of the story when nothing goes wrong, and how many writes that took."""
    tag = uuid.uuid4().hex
    with dying(writes=-1) as count:
        for events in story(tag):
            mlflow_view.apply(events, tracking=tracking, run_id=f"run-{tag}")
    return state(tracking, tag), count[0]


def cursor(tracking: str, run_id: str, attempt: int) -> int:
    """How many events of an attempt MLflow shows."""
    with connected(tracking) as client:
        everywhere = [item.experiment_id for item in client.search_experiments()]
        runs = client.search_runs(everywhere, f"tags.`nemo_sky.run_id` = '{run_id}'")
        return int(runs[0].data.tags.get(f"nemo_sky.seq.{attempt}", 0)) if runs else 0


def test_a_crash_after_every_single_write_changes_nothing(tracking: str, told: tuple[Any, int]) -> None:
    tag = uuid.uuid4().hex
    deaths = 0
    for attempt, events in enumerate(story(tag), start=1):
        patience = 1
        while cursor(tracking, f"run-{tag}", attempt) < len(events):
            before = cursor(tracking, f"run-{tag}", attempt)
            try:
                with dying(patience):
                    mlflow_view.apply(events, tracking=tracking, run_id=f"run-{tag}")
            except Killed:
                deaths += 1
            # The same event once more, one write further, until it is through.
            patience = patience + 1 if cursor(tracking, f"run-{tag}", attempt) == before else 1
    expected, writes = told
    assert deaths >= writes / 2, "many writes are not repeated once they took effect"
    assert state(tracking, tag) == expected


@settings(max_examples=5)
@given(data=st.data())
def test_any_prefix_a_crash_and_everything_again_is_the_same(
    tracking: str, told: tuple[Any, int], data: st.DataObject
) -> None:
    expected, writes = told
    tag = uuid.uuid4().hex
    journals = story(tag)
    deaths = data.draw(st.lists(st.integers(1, writes), min_size=1, max_size=3))
    for death in deaths:
        try:
            with dying(death):
                for events in journals:
                    prefix = data.draw(st.integers(1, len(events)))
                    mlflow_view.apply(events[:prefix], tracking=tracking, run_id=f"run-{tag}")
                    mlflow_view.apply(events, tracking=tracking, run_id=f"run-{tag}")
        except Killed:
            pass
    for events in journals:
        mlflow_view.apply(events, tracking=tracking, run_id=f"run-{tag}")
    assert state(tracking, tag) == expected


def test_applying_again_writes_nothing(tracking: str) -> None:
    tag = uuid.uuid4().hex
    for events in story(tag):
        mlflow_view.apply(events, tracking=tracking, run_id=f"run-{tag}")
    with dying(writes=1) as count:
        for events in story(tag):
            mlflow_view.apply(events, tracking=tracking, run_id=f"run-{tag}")
    assert count == [0]
