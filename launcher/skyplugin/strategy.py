"""NEMO_SKY: the recovery strategy of SkyPilot's managed jobs that spends a run's money by our policy.

Written against SkyPilot 0.14.1 (``sky/jobs/recovery_strategy.py``), runs in its jobs controller. At the start
and after each preemption ``launcher.skyplugin.decide`` says which zone and market to launch in, to wait, or
to end the job; while a job runs where it may do better, it is asked at every tick, and a move happens right
after a checkpoint: the nodes are taken down, and SkyPilot's own monitor then asks for a recovery.

A job that must not be recovered ends by ``NotRecovered``: as a kind of ``ManagedJobReachedMaxRetriesError``
it is final to the controller; any other exception would make it tear down and launch again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sky import exceptions, global_user_state, optimizer, sky_logging
from sky.jobs import recovery_strategy, state
from sky.utils import registry, resources_utils

from launcher.agent.limits import FINAL
from launcher.money import places
from launcher.money.policy import ON_DEMAND
from launcher.skyplugin.names import KEY, STRATEGY

# Below SkyPilot's own loggers, so that lines reach `sky jobs logs --controller`.
logger = sky_logging.init_logger("sky.nemo_sky")

ASK_S = 120.0
"""For one answer, a store that retries included."""
AGAIN_S = 15.0
"""Between two tries of a question that could not be answered."""
TICK_S = 195.0
"""Between two looks at a market, at most: the policy's own tick."""


class NotRecovered(exceptions.ManagedJobReachedMaxRetriesError):  # type: ignore[misc]
    """The job ends here; the message says why."""


@registry.JOBS_RECOVERY_STRATEGY_REGISTRY.type_register(name=STRATEGY, default=False)
class NemoSky(recovery_strategy.FailoverStrategyExecutor):  # type: ignore[misc]
    """Market and zone at start and at each recovery by our policy, within the run's caps."""

    _terms: Mapping[str, Any]

    def set_strategy_config(self, config: dict[str, Any]) -> None:
        """Called whenever the controller takes the job up; must not raise."""
        self._terms = config.pop(KEY, {})
        self._running: str | None = None
        self._moving = False  # its nodes are taken down to go elsewhere
        self._failed = False  # the job itself failed, which says nothing about the zone
        self._was_up = False  # of the last launch, a node may have run
        super().set_strategy_config(config)

    @property
    def _tick(self) -> float:
        lease = self._terms.get("lease") or {}
        return min(max(float(lease.get("check", 0)) / 1000, 1.0), TICK_S)

    async def launch(self) -> float:
        """The first launch; raises NotRecovered when the run may not begin."""
        return await self._place(None, recovery=False)

    async def recover(self) -> float:
        """Called when the nodes are gone, or the job failed and is to be tried again."""
        place, self._running = self._running, None
        what = "left" if self._moving or self._failed else "lost"
        event = {"place": place, "what": what} if place else None
        self._moving = self._failed = False
        await asyncio.to_thread(self._cleanup_cluster)
        return await self._place(event, recovery=True)

    def should_restart_on_failure(self, exit_codes: list[int] | None = None) -> bool:
        """What cannot succeed is not tried again, whatever ``max_restarts_on_errors`` says: it would cost new
        nodes, on which the agent refuses to begin."""
        if {*FINAL, *self._terms.get("no_retry", ())} & set(exit_codes or ()):
            return False
        self._failed = bool(super().should_restart_on_failure(exit_codes))
        return self._failed

    async def on_resume(self, cluster_name: str) -> None:
        """The controller was started anew: find out where the job runs."""
        handle = await asyncio.to_thread(global_user_state.get_handle_from_cluster_name, cluster_name)
        self._launched_resources = getattr(handle, "launched_resources", None)
        if self._launched_resources is not None:
            self._running = _label(self._launched_resources)

    async def monitor_task(self, **kwargs: Any) -> None:
        """SkyPilot's own monitor watches the job; we watch the markets, where it may use both."""
        parent = asyncio.current_task()
        assert parent
        if len({one.use_spot for one in self.dag.tasks[0].resources}) > 1:
            self._watcher = asyncio.create_task(self._watch(parent))

    async def _place(self, event: Mapping[str, Any] | None, recovery: bool) -> float:
        """Launch where the policy says, until one launch succeeds."""
        task = self.dag.tasks[0]
        wanted = task.resources
        while True:
            answer, known = await self._ask(event, None)
            event = None
            logger.info(f"[nemo-sky] {answer['do']} {answer['place'] or ''}: {answer['why']}")
            if answer["do"] == "stop":
                raise NotRecovered(answer["why"])
            if answer["do"] != "launch":
                await asyncio.sleep(self._tick)
                continue
            place = answer["place"]
            task.set_resources(known[place])
            try:
                submitted = await self._launch(max_retry=1, raise_on_failure=True, recovery=recovery)
            except exceptions.ManagedJobReachedMaxRetriesError as error:
                logger.info(f"[nemo-sky] {place} refused: {error}")
                submitted = None
            finally:
                task.set_resources(wanted)
            if submitted is None:
                event = {"place": place, "what": "refused", "was_up": self._was_up}
                continue
            launched = self._launched_resources
            self._running = _label(launched) if launched is not None else place
            with contextlib.suppress(RuntimeError):  # it runs, whether or not that is remembered
                await self._ask({"place": self._running, "what": "launched"}, self._running, tries=2)
            return float(submitted)

    async def _await_launch_request(self, request_id: str, stream_task: asyncio.Future[Any]) -> None:
        """SkyPilot's own wait for one launch, which tells a cloud's refusal from a launch that failed later.
        Of several nodes some may have run until the last was refused."""
        self._was_up = True
        try:
            await super()._await_launch_request(request_id, stream_task)
        except exceptions.ResourcesUnavailableError:
            self._was_up = self.dag.tasks[0].num_nodes > 1
            raise

    async def _watch(self, parent: asyncio.Task[Any]) -> None:
        """Move at a checkpoint when the policy wants the job elsewhere. Ends with the job."""
        since: int | None = None
        deciding = False
        while not parent.done():
            await asyncio.sleep(self._tick)
            status = await state.get_job_status_with_task_id_async(job_id=self.job_id, task_id=self.task_id)
            if status is None or status.is_terminal():
                return
            if status != state.ManagedJobStatus.RUNNING or self._running is None or self._moving:
                deciding = False
                continue
            try:
                answer, _ = await self._ask(None, self._running, tries=1)
            except RuntimeError as error:
                logger.info(f"[nemo-sky] no look at the market now: {error}")
                continue
            if answer["do"] not in ("launch", "wait"):
                deciding = False
                continue
            if not deciding:
                logger.info(f"[nemo-sky] {answer['do']} {answer['place'] or ''} at the next checkpoint")
                deciding, since = True, answer["step"]
            elif answer["step"] is not None and answer["step"] != since:
                logger.info(f"[nemo-sky] leaving {self._running} at step {answer['step']}: {answer['why']}")
                self._moving, deciding = True, False
                await asyncio.to_thread(self._cleanup_cluster)

    async def _ask(
        self, event: Mapping[str, Any] | None, running: str | None, tries: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer of ``launcher.skyplugin.decide``, and the resources of each place it may name.

        Asks until there is one, or raises RuntimeError after ``tries``.
        """
        while True:
            try:
                return await asyncio.to_thread(self._ask_once, event, running)
            except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
                if tries is not None and (tries := tries - 1) <= 0:
                    raise RuntimeError(str(error)) from error
                logger.info(f"[nemo-sky] no decision yet: {error}")
                await asyncio.sleep(AGAIN_S)

    def _ask_once(
        self, event: Mapping[str, Any] | None, running: str | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        task = self.dag.tasks[0]
        spot, on_demand = _places(task, self._terms.get("price") is not None)
        nodes = task.num_nodes
        dearest = max(on_demand, key=_price, default=None)
        asked = {
            "terms": dict(self._terms),
            "spot": {zone: _facts(one, nodes) for zone, one in spot.items()},
            "on_demand": _facts(dearest, nodes) if dearest is not None else None,
            "nodes": nodes,
            "event": event,
            "running": running,
        }
        done = subprocess.run(
            [sys.executable, "-m", "launcher.skyplugin.decide"],
            input=json.dumps(asked),
            env=_environment(task),
            capture_output=True,
            text=True,
            timeout=ASK_S,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no answer")
        answer: dict[str, Any] = json.loads(done.stdout)
        known: dict[str, Any] = {zone: {one} for zone, one in spot.items()}
        if on_demand:
            known[ON_DEMAND] = set(on_demand)
        return answer, known


def _places(task: Any, priced: bool) -> tuple[dict[str, Any], list[Any]]:
    """What SkyPilot could launch the task on: the cheapest spot resources by zone, and on-demand ones.

    Where the catalog says no price, or the lowest bid of an auction, would be the cheapest of all: unless the
    profile has ``priced`` them, such places are taken only when there are no others. One's own are no such.
    """
    launchable, *_ = optimizer._fill_in_launchable_resources(task, None, quiet=True)
    every = [
        one
        for found in launchable.values()
        for each in found
        for one in resources_utils.make_launchables_for_valid_region_zones(each)
    ]
    sold = [one for one in every if priced or _price(one) or str(one.cloud).lower() in places.OWN]
    spot: dict[str, Any] = {}
    on_demand: list[Any] = []
    for one in sold or every:
        if not one.use_spot:
            on_demand.append(one)
            continue
        label = _label(one)
        if label not in spot or _price(one) < _price(spot[label]):
            spot[label] = one
    return spot, on_demand


def _price(resources: Any) -> float:
    """Dollars per hour of one node by SkyPilot's catalog; 0 where that does not know what is paid."""
    return 0.0 if str(resources.cloud).lower() in places.AUCTIONS else max(float(resources.get_cost(3600)), 0)


def _label(resources: Any) -> str:
    """The policy's name of a place."""
    return str(resources.zone or resources.region) if resources.use_spot else ON_DEMAND


def _facts(resources: Any, nodes: int) -> dict[str, Any]:
    gpu, count = next(iter((resources.accelerators or {}).items()), (resources.instance_type, 0))
    return {
        "price": _price(resources) * nodes,
        "cloud": str(resources.cloud).lower(),
        "region": resources.region,
        "zone": resources.zone,
        "gpu": gpu,
        "count": count,
    }


def _environment(task: Any) -> dict[str, str]:
    """The job's own variables and credentials: the store is the job's."""
    own = {}
    for key, value in task.envs_and_secrets.items():
        own[key] = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
    root = str(Path(__file__).parents[2])
    return {**os.environ, **own, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
