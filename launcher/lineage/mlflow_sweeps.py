"""A sweep in MLflow: a run in the experiment of the same name, with the trials' runs as its children."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from launcher.errors import Refused
from launcher.lineage.mlflow_artifacts import RUN_TAG, experiment, find_run
from launcher.lineage.mlflow_client import connected

if TYPE_CHECKING:
    from launcher.sweep.report import Result


def parent(client: Any, home: str, sweep: str, begun: int, user: Mapping[str, str]) -> str:
    """MLflow's id of the sweep's own run in the experiment ``home``, made when absent."""
    mark = f"sweep {sweep}"
    found = find_run(client, mark)
    if found:
        return found
    tags = {RUN_TAG: mark, **user}
    return str(client.create_run(home, start_time=begun, tags=tags, run_name=mark).info.run_id)


class Parent:
    """The sweep's own run. MLflow's troubles are said once and end nothing: `runs show` mends the trials'."""

    def __init__(self, tracking: str, sweep: str, say: Callable[[str], None]) -> None:
        self._tracking, self._sweep, self._say = tracking, sweep, say

    def begin(self, definition: Mapping[str, Any], user: str) -> None:
        """It runs, again perhaps, and this is what is swept."""
        self._show({"nemo_sky.swept": definition}, {}, user, ended=False)

    def end(self, result: Result) -> None:
        """It has ended with this."""
        tags: dict[str, Any] = {"nemo_sky.ended": result.why}
        metrics = {"spent_usd": result.spent_usd, "budget_usd": result.budget_usd}
        if result.best:
            tags |= {"nemo_sky.best_run": result.best["run_id"], "nemo_sky.best": result.best["params"]}
            metrics[f"best/{result.metric}"] = result.best["value"]
        self._show(tags, metrics, None, ended=True)

    def _show(
        self, tags: Mapping[str, Any], metrics: Mapping[str, float], user: str | None, *, ended: bool
    ) -> None:
        import json
        import time

        now = int(time.time() * 1000)
        try:
            with connected(self._tracking) as client:
                home = experiment(client, self._tracking, self._sweep)
                run = parent(client, home, self._sweep, now, {"mlflow.user": user} if user else {})
                for key, value in tags.items():
                    client.set_tag(run, key, value if isinstance(value, str) else json.dumps(value))
                for key, number in metrics.items():
                    client.log_metric(run, key, number, now)
                if ended:
                    client.set_terminated(run, "FINISHED", now)
                else:
                    client.update_run(run, status="RUNNING")
        except Refused as error:
            self._say(f"the sweep goes on without MLflow, which gets its trials later: {error.message}")
