"""What MLflow shows of a run while it goes on, and when it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.lineage.mlflow_client import connected
from tests.rig import make_rig


def test_mlflow_is_followed_live_with_system_metrics(tmp_path: Path) -> None:
    tracking = f"sqlite:///{tmp_path}/mlflow.db"

    def look() -> Any:
        with connected(tracking) as client:
            experiments = [item.experiment_id for item in client.search_experiments()]
            found = client.search_runs(experiments, f"tags.`nemo_sky.run_id` = '{rig.run_id}'")
        return found[0] if found else None

    with make_rig(tmp_path) as rig:
        rig.job["tracking"] = tracking
        process = rig.start("5000", "save=1000", "sleep=0.05", MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING="true")
        sampled = "system/cpu_utilization_percentage"
        rig.until(lambda: (seen := look()) and sampled in seen.data.metrics, 100)
        assert look().info.status == "RUNNING"
        assert look().data.params["train.lr"] == "0.5"
        process.terminate()
        rig.finish(process, 75)
        ended = look()
        assert ended.info.status == "KILLED"
        points = [p for e in rig.journal(1) if e["type"] == "metrics" for p in e["points"]]
        with connected(tracking) as client:
            history = client.get_metric_history(ended.info.run_id, "loss")
        assert {p.step: p.value for p in history} == {p["step"]: p["value"] for p in points}
