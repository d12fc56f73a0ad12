"""What MLflow shows of a run, for tests that look at a launch from outside."""

from __future__ import annotations

from typing import Any


def in_mlflow(tracking: str, run_id: str) -> tuple[Any, list[Any]]:
    """MLflow's own record of a run, whole, and those of its attempts in order."""
    import mlflow

    client = mlflow.MlflowClient(tracking)
    homes = [home.experiment_id for home in client.search_experiments()]
    (run,) = client.search_runs(homes, f"tags.`nemo_sky.run_id` = '{run_id}'")
    attempts = client.search_runs(homes, f"tags.`nemo_sky.attempt_of` = '{run_id}'")
    in_order = sorted(attempts, key=lambda attempt: int(attempt.data.tags["nemo_sky.attempt"]))
    return client.get_run(run.info.run_id), in_order
