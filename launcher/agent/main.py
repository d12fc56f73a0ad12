"""The agent, from top to bottom: what happens on a node around the training command.

    node 0   claim the attempt, and its money -> gather the nodes -> inputs, config -> restore
             -> run the command; meanwhile journal metrics, commit checkpoints, show all in MLflow, and
                stop in time when the budget ends or the deadline comes
             -> commit the last checkpoint -> publish the output -> end
    others   join the attempt -> inputs, config -> restore -> run the command (or a Ray worker)
             -> upload their part of every checkpoint until node 0 says that it is done

Exit codes: see ``launcher.agent.ends``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.agent import inputs, limits, notice, output, rendezvous, saving, watch
from launcher.agent.ends import (
    BAD_OUTPUT,
    END_RETRY_S,
    INTERRUPTED,
    NO_INPUT,
    NO_STORE,
    START_RETRY_S,
    Ended,
    Interrupted,
    Outcome,
    ends_with,
    insist,
    say,
)
from launcher.agent.inputs import Input
from launcher.agent.job import Job, Node, read_job, read_node
from launcher.agent.metrics import MetricsFile
from launcher.agent.network import gloo_interface
from launcher.agent.processes import Guarded, adopt_orphans
from launcher.agent.purse import Purse, look, obey
from launcher.agent.ray_cluster import RayNode
from launcher.agent.record import Record
from launcher.agent.rendezvous import Attempt
from launcher.agent.saving import Saving
from launcher.agent.stop import Stop
from launcher.agent.system import SystemMetrics
from launcher.agent.watch import Watch
from launcher.artifacts import checkpoints, transfer
from launcher.artifacts.checkpoints import Checkpoint
from launcher.artifacts.store import Store, StoreError, open_store
from launcher.errors import UserError
from launcher.lineage import journal, sync

SAVING = "saving.json"  # an object of the attempt: all nodes save at the same steps
MLFLOW_WAIT_S = 30.0  # for MLflow's id of the run, which the output names
MEMBER_WAIT_S = 3600.0  # for node 0's last checkpoint, once the command has ended here


@dataclass(frozen=True)
class Order:
    """What is asked of this agent."""

    job: Job
    node: Node
    store: Store
    stop: Stop
    command: Sequence[str]
    ray: bool


def main(arguments: Sequence[str]) -> int:
    """Run the agent; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m launcher.agent")
    parser.add_argument("--job", type=Path, required=True, help="the folder with job.yaml and train.yaml")
    parser.add_argument("--ray", action="store_true", help="run the command on the head of a Ray cluster")
    parser.add_argument("command", nargs="+", help="the training command, after --")
    options = parser.parse_args(arguments)
    stop = Stop()
    adopt_orphans()
    try:
        job = read_job(options.job)
        node = read_node(job.run_id)
        store = open_store(job.artifacts, job.s3_endpoint)
        order = Order(job, node, store, stop, options.command, options.ray)
        clear(node)
        return lead(order) if node.rank == 0 else take_part(order)
    except UserError as error:
        say(str(error))
        return error.exit_code
    except Ended as error:
        say(error.reason)
        return error.code
    except Interrupted:
        stop.linger("nothing was running yet")
        say(f"{stop.why.reason}: nothing was running yet")
        return stop.why.code


def lead(order: Order) -> int:
    """Node 0: one attempt, from its claim to its end in the journal."""
    job, node, store, stop = order.job, order.node, order.store, order.stop
    with ends_with(NO_STORE), stop.interruptible():
        attempt = insist(lambda: rendezvous.claim(store, job.run_id), START_RETRY_S)
        before = insist(lambda: output.spent_before(store, job.run_id, attempt.number), START_RETRY_S)
    say(f"run {job.run_id}, attempt {attempt.number}, {node.count} node{'s' if node.count > 1 else ''}")
    clock = output.Clock(before, time.time(), job.price_per_hour)
    purse = Purse(job, node, attempt, stop)
    record = Record(
        store,
        job.run_id,
        attempt.number,
        path=node.work / f"journal-{attempt.number}.jsonl",
        metrics=MetricsFile(node.metrics),
        system=SystemMetrics(before.hours * 3600),
        tracking=job.tracking,
    )
    outcome = Outcome("failed", 1, "the agent itself failed")
    try:
        outcome = carry_out(order, attempt, record, clock, purse)
    except Ended as error:
        outcome = Outcome(error.status, error.code, error.reason)
    except Interrupted:
        stop.linger("nothing was running yet")
        outcome = replace(stop.why, reason=f"{stop.why.reason}, before the command ran")
    finally:
        with contextlib.suppress(StoreError):
            attempt.end(outcome.code)
        purse.settle()
        spent = purse.clock(clock).attempt()
        record.collect(final=True)
        record.event(
            "attempt_ended",
            status=outcome.status,
            exit_code=outcome.code,
            hours=spent.hours,
            cost_usd=spent.cost_usd,
            reason=outcome.reason,
        )
        record.close()
        purse.close()  # the journal's last way took its time, too
    say(f"attempt {attempt.number} {outcome.status}" + (f": {outcome.reason}" if outcome.reason else ""))
    return outcome.code


def carry_out(order: Order, attempt: Attempt, record: Record, clock: output.Clock, purse: Purse) -> Outcome:
    """The attempt proper. Raises Ended or Interrupted where it cannot go on."""
    job, node, store, stop = order.job, order.node, order.store, order.stop

    with ends_with(NO_STORE), stop.interruptible():
        earlier = insist(lambda: sync.attempts(store, job.run_id), START_RETRY_S)
    # What it starts from.
    found: list[Input] = []
    config: dict[str, Any] = dict(job.config)
    pace = saving.choose(job, node.place.get("zone"), earlier)
    try:
        purse.open()  # also when it may not begin: its set-up has cost something
        limits.check(earlier, job.submission, job.preemptions, job.no_retry)
        with ends_with(NO_INPUT), stop.interruptible():
            found = insist(lambda: inputs.resolve(job, store), START_RETRY_S)
            config = inputs.script_config(job, node, found)
    finally:
        record.event("attempt_started", **started(order, attempt, config, found, pace))
    obey(attempt, stop, lambda why, at: record.event("notice", reason=why, leaves_at=at))
    notice.heed(node, attempt, stop)
    with ends_with(NO_STORE), stop.interruptible():
        if pace:
            insist(lambda: attempt.write(SAVING, {"steps": pace.steps}), START_RETRY_S)
        newest = insist(lambda: checkpoints.newest(store, job.run_id), START_RETRY_S)
        step = newest.step if newest else None
        insist(lambda: rendezvous.gather(attempt, node.count, step), START_RETRY_S)
    if pace:
        config = saving.applied(config, pace.steps)
        say(f"saves every {pace.steps} steps, about {pace.seconds:.0f} s")
    if restored := prepare(order, attempt, found, config, step):
        record.event("restored", step=restored.step, uri=store.uri(restored.base))
        say(f"restored checkpoint {restored.step}")

    # The command, while its checkpoints are committed.
    def committed(checkpoint: Checkpoint, seconds: float) -> None:
        uri, size = store.uri(checkpoint.base), checkpoint.bytes
        record.event("checkpoint", step=checkpoint.step, uri=uri, bytes=size, seconds=round(seconds, 3))
        with contextlib.suppress(StoreError):  # a node that goes once the log says so has told its journal
            record.flush()
        say(f"committed checkpoint {checkpoint.step} ({size / 1e6:.1f} MB in {seconds:.1f} s)")

    watcher = Watch(attempt, node, keep=job.keep, restored=step, committed=committed)
    trouble: StoreError | None = None
    saved: int | None = None
    with in_cluster(order, attempt) as (_, env):
        code = stop.run(Guarded(order.command, env=env))
        patience = START_RETRY_S if code else END_RETRY_S
        try:
            if not stop.number:  # what saved with another node and ended well is no finished model
                insist(lambda: look(attempt, stop), patience)
            if stop.number and stop.why.code == INTERRUPTED and stop.leaves_at is None:
                record.event("interrupted", signal=stop.name)
            saved = watcher.finish(patience)
        except StoreError as error:
            trouble = error
        with contextlib.suppress(StoreError):  # the others then go by the head's silence
            insist(lambda: attempt.end(code), 0 if trouble else START_RETRY_S)
    if stop.number:
        stop.linger(standing(saved, trouble))
        return replace(stop.why, reason=f"{stop.why.reason}; {standing(saved, trouble)}")
    if code:
        return Outcome("failed", code, f"the command {describe(code)}; {standing(saved, trouble)}")
    if trouble:
        return Outcome("failed", NO_STORE, standing(saved, trouble))

    # What it made.
    if job.output:
        with ends_with(BAD_OUTPUT):
            made_by = producer(order, attempt, record, purse.clock(clock), found)
            manifest = output.publish(job, node, store, job.output, found, made_by, saved)
        record.event("output", manifest=asdict(manifest))
        say(f"published {manifest.uri} ({manifest.bytes / 1e6:.1f} MB)")
    return Outcome("succeeded", 0)


def take_part(order: Order) -> int:
    """Any other node: what node 0 needs of it."""
    job, node, store, stop = order.job, order.node, order.store, order.stop
    with ends_with(NO_STORE), stop.interruptible():
        attempt, step = insist(lambda: rendezvous.join(store, job.run_id, node.rank), START_RETRY_S)
    obey(attempt, stop)
    notice.heed(node, attempt, stop)
    with ends_with(NO_INPUT), stop.interruptible():
        found = insist(lambda: inputs.resolve(job, store), START_RETRY_S)
        config = inputs.script_config(job, node, found)
    with ends_with(NO_STORE), stop.interruptible():
        if pace := insist(lambda: attempt.read(SAVING), START_RETRY_S):
            config = saving.applied(config, pace["steps"])
    prepare(order, attempt, found, config, step)
    watcher = Watch(attempt, node, keep=None, restored=step, committed=lambda *_: None)
    with in_cluster(order, attempt) as (ray, env):
        if ray:
            ray.serve(attempt.ended, stop.overdue)
        else:
            code = stop.run(Guarded(order.command, env=env))
            with contextlib.suppress(StoreError):
                look(attempt, stop)
            if code and not stop.number:
                say(f"the command {describe(code)}")
                watcher.finish_as_failed_member()
                return code
        ended = watcher.finish_as_member(MEMBER_WAIT_S, stop.overdue)
    if stop.number:
        stop.linger("its command has ended")
        return stop.why.code
    if ended is None:
        raise Ended(NO_STORE, f"node 0 did not say within {MEMBER_WAIT_S:.0f} s that it has ended")
    return 0


def clear(node: Node) -> None:
    """Remove what an earlier attempt left that this one must not take for its own."""
    try:
        node.work.mkdir(parents=True, exist_ok=True)
        for path in (node.output, node.metadata, node.metrics):
            transfer.remove(path)
    except OSError as error:
        raise UserError(
            f"{node.work} cannot be used: {error.strerror}", hint="NEMO_SKY_WORK names another folder"
        ) from error


def prepare(
    order: Order, attempt: Attempt, found: list[Input], config: dict[str, Any], step: int | None
) -> Checkpoint | None:
    """Fetch the inputs, write the config, restore the checkpoint ``step``; returns the checkpoint."""
    node, store = order.node, order.store
    with ends_with(NO_INPUT), order.stop.interruptible():
        insist(lambda: inputs.fetch(found, node, store), START_RETRY_S)
        inputs.write_config(config, node.config)
    with ends_with(NO_STORE), order.stop.interruptible():
        return insist(lambda: watch.restore(attempt, node, step), START_RETRY_S)


@contextmanager
def in_cluster(order: Order, attempt: Attempt) -> Iterator[tuple[RayNode | None, dict[str, str]]]:
    """The command's environment; with ``--ray``, inside a cluster of which this node is a part."""
    own = {"NEMO_SKY_RUN_ID": order.job.run_id, "NEMO_SKY_ATTEMPT": str(attempt.number)}
    given = {name: order.node.fill(text) for name, text in os.environ.items()}
    env = {**gloo_interface(order.node), **given, **order.node.variables(), **own}
    if not order.ray:
        yield None, env
        return
    ray = RayNode(order.node, order.job.run_id, attempt.number, env)
    try:
        with order.stop.interruptible():
            ray.start()
            ray.wait_for_all()
        yield ray, ray.env
    finally:
        ray.stop()


def started(
    order: Order, attempt: Attempt, config: dict[str, Any], found: list[Input], pace: Saving | None
) -> dict[str, Any]:
    """The fields of the event attempt_started."""
    job = order.job
    names = {"run_id": job.run_id, "family": job.family, "stage": job.stage, "experiment": job.experiment}
    return {
        "attempt": attempt.number,
        "run": {**inputs.provenance(job, found), **names, "submission": job.submission},
        "params": journal.flat(config),
        "inputs": [item.event(order.store) for item in found],
        "place": dict(order.node.place),
        "price_per_hour": job.price_per_hour,
        **({"saving": asdict(pace)} if pace else {}),
    }


def producer(
    order: Order, attempt: Attempt, record: Record, clock: output.Clock, found: list[Input]
) -> dict[str, Any]:
    """Who made the output. Hours and cost are those of all attempts of the run."""
    job, spent = order.job, clock.run()
    return {
        **inputs.provenance(job, found),
        "run_id": job.run_id,
        "family": job.family,
        "stage": job.stage,
        "attempt": attempt.number,
        "nodes": order.node.count,
        "place": dict(order.node.place),
        "hours": spent.hours,
        "cost_usd": spent.cost_usd,
        "mlflow_run_id": record.mlflow_run(MLFLOW_WAIT_S),
    }


def describe(code: int) -> str:
    """An exit code of the shell's, in words."""
    if code == 127:
        return "could not be started"
    return f"was killed by signal {code - 128}" if code > 128 else f"exited with {code}"


def standing(saved: int | None, trouble: StoreError | None) -> str:
    """What a resumed run will find."""
    if trouble:
        return f"its last checkpoint could not be committed: {trouble.message}"
    return "no checkpoint was saved" if saved is None else f"checkpoint {saved} is committed"
