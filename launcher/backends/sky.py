"""Runs a task through SkyPilot: on a cluster of the run's own, or as a managed job that SkyPilot recovers.

The run's id names its cluster or its managed job, so a launcher that was killed at any moment finds the run
again by asking SkyPilot. RUN_DIR/sky.json says which of the two it is and which request asked for it.
RUN_DIR/state.json is written once it has ended; from then on nobody asks SkyPilot about it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from launcher import runs
from launcher.agent.ends import BUDGET_REACHED, CANCELLED, DEADLINE_REACHED
from launcher.backends import sky_calls, sky_journal, sky_logs, sky_shell
from launcher.backends.base import ACTIVE, State
from launcher.errors import Refused

OUTLIVES_LAUNCHER = True
POLL_S = 1.0
GONE_S = 120.0  # a request that was posted is in SkyPilot's lists by then
SAVE_S = 180.0  # a cancelled run has two minutes to save (agent/stop.py) and one to commit
TAIL = 40
OUTAGE_S = 900.0  # SkyPilot may be away so long before who follows a run is sent away too
_UNDER_WAY = ("PENDING", "WAITING", "RUNNING")  # of a request
# How an attempt ends at a cap, in its journal and as a status. To SkyPilot it failed.
CAPS = {BUDGET_REACHED: "BUDGET_REACHED", DEADLINE_REACHED: "DEADLINE_REACHED"}
_NO_FAILURES = {**CAPS, CANCELLED: "CANCELLED"}
_OVER = ("SUCCEEDED", "FAILED", *_NO_FAILURES.values())


@dataclass(frozen=True)
class Ticket:
    """What a submission left behind. ``request`` is SkyPilot's id, None when its answer did not come or the
    launcher died before; ``submitted_at`` is in epoch seconds. ``job`` is the name of the managed job or the
    cluster, the run's id unless it is stage ``task`` of a pipeline. ``server`` is the address of the API
    server that has it: no other knows of it."""

    managed: bool
    request: str | None
    submitted_at: float
    job: str
    task: int = 0
    server: str | None = None


def submit(
    run_dir: Path, task: Mapping[str, Any], *, secrets: Mapping[str, str] | None = None, managed: bool = False
) -> None:
    """Hand the next attempt to SkyPilot; see ``base.Backend``. Returns once SkyPilot has accepted it."""
    before = status(run_dir)
    if before.active:
        raise Refused(f"{run_dir.name} is {before.status.lower()} already")
    ticket = Ticket(managed, None, time.time(), run_dir.name, server=sky_calls.server())
    _launch([(run_dir, ticket, task, secrets or {})])


def submit_pipeline(name: str, stages: Sequence[tuple[Path, Mapping[str, Any], Mapping[str, str]]]) -> None:
    """Hand several runs to SkyPilot as one managed job ``name``, each to begin when the one before has
    succeeded. A stage is its run's folder, task and secrets. Raises Refused when SkyPilot does."""
    server = sky_calls.server()
    _launch(
        [
            (run_dir, Ticket(True, None, time.time(), name, number, server), task, secrets)
            for number, (run_dir, task, secrets) in enumerate(stages)
        ]
    )


def _launch(stages: Sequence[tuple[Path, Ticket, Mapping[str, Any], Mapping[str, str]]]) -> None:
    """Post one request for all ``stages``. Should this process die meanwhile, or the answer not come, the
    tickets are there already, and ``_state`` finds the request by its name. A refusal changes nothing."""
    paths = [run_dir / name for run_dir, *_ in stages for name in ("sky.json", "state.json")]
    before = {path: path.read_bytes() for path in paths if path.exists()}
    for run_dir, ticket, *_ in stages:
        (run_dir / "state.json").unlink(missing_ok=True)
        _save(run_dir, ticket)
    first = stages[0][1]
    try:
        request = sky_calls.launch(first.job, [(task, hidden) for *_, task, hidden in stages], first.managed)
    except sky_calls.Unanswered:
        return
    except Refused:
        for path in paths:
            if path in before:
                runs.write_text(path, before[path])
            else:
                path.unlink(missing_ok=True)
        raise
    for run_dir, ticket, *_ in stages:
        _save(run_dir, replace(ticket, request=request))


def follow(run_dir: Path, *, from_start: bool = True, wait: bool = True) -> Iterator[str]:
    """What SkyPilot says while it provisions, then the job's log; see ``base.Backend``.

    A lost connection is taken up again where it broke off, a server that does not answer is asked again for
    a quarter of an hour; leaving stops nothing.
    """
    ended = _ended(run_dir)
    ticket = _ticket(run_dir) if ended else _known(run_dir)
    asked = sky_calls.request_state(ticket.request) if ticket and ticket.request and not ended else None
    launching = asked is not None and asked.status in _UNDER_WAY
    log = run_dir / "logs" / "sky.log"
    if (ended or not (launching or status(run_dir).active)) and log.exists():
        if from_start:
            yield from log.read_text(errors="replace").splitlines()
        return
    if ticket is None:
        return
    job = None
    if wait and launching and ticket.request:
        with contextlib.suppress(Refused):  # why it failed is the run's status
            job = yield from sky_logs.launch_log(ticket.request, ticket.job, ticket.managed)
    shown: list[int] = []
    away: float | None = None  # since when SkyPilot does not answer
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        while True:
            fresh, whole = not shown, False
            with contextlib.suppress(Refused):
                lines = _log(ticket, job, wait=wait, tail=0 if from_start else 1)
                for line in sky_logs.unseen(lines, shown) if from_start else lines:
                    said.write(f"{line}\n")
                    yield line
                whole = from_start and fresh
            job = None  # a recovery may have given it another cluster
            if not wait:
                return
            try:
                if not _state(run_dir, said if whole else None).active:
                    return
                away = None
            except Refused as error:
                if away is None:
                    away = time.monotonic()
                    yield f"{error.message}; the run goes on without it, and it is asked again"
                if time.monotonic() - away > OUTAGE_S:
                    raise
            time.sleep(POLL_S)


def cancel(run_dir: Path, grace_s: float | None = None) -> None:
    """Stop the run and take its nodes down; see ``base.Backend``."""
    ticket = _known(run_dir)
    if ticket is None or not (state := status(run_dir)).active:
        down(run_dir)
        return
    name = run_dir.name
    if ticket.request:
        sky_calls.withdraw(ticket.request)
    seconds = SAVE_S if grace_s is None else grace_s
    for stage in (run_dir, *(run_dir.parent / other for other in together(run_dir))):
        if (state if stage == run_dir else status(stage)).status == "RUNNING":
            sky_journal.let_it_save(stage, ticket.submitted_at, seconds)
    if ticket.managed:
        sky_calls.cancel_managed(ticket.job)
        while (state := status(run_dir)).active:
            time.sleep(POLL_S)
        if state.status not in _OVER:
            _finish(run_dir, ticket, replace(state, status="CANCELLED"))
        return
    sky_calls.cancel_cluster_job(name)
    if (state := status(run_dir)).status not in _OVER:
        _finish(run_dir, ticket, replace(state, status="CANCELLED", reason="cancelled"))
    sky_calls.down(name)


def together(run_dir: Path) -> list[str]:
    """The other stages of its pipeline, in order; see ``base.Backend``. They are one job."""
    ticket = _ticket(run_dir)
    found = [(path.parent.name, _ticket(path.parent)) for path in run_dir.parent.glob("*/sky.json")]
    mine = ticket.job if ticket and ticket.job != run_dir.name else None
    stages = sorted((other.task, name) for name, other in found if other and other.job == mine)
    return [name for _, name in stages if name != run_dir.name]


def down(run_dir: Path) -> None:
    """Release what the run holds. A cluster goes away with all that is on it; a managed job frees its own."""
    ticket = _known(run_dir)
    if ticket is not None and not ticket.managed:
        with contextlib.suppress(Refused):
            status(run_dir)  # its log is fetched while there is a node to ask
        sky_calls.down(run_dir.name)


def shell(run_dir: Path) -> list[str]:
    """The command that opens a shell on the run's first node. Raises Refused when there is none, and for a
    managed job, whose clusters SkyPilot keeps to itself."""
    ticket = _known(run_dir)
    if ticket and ticket.managed:
        raise Refused(
            f"{run_dir.name} is a managed job, and SkyPilot opens no shell on the nodes of one",
            hint=f"`nemo-sky runs logs -f {run_dir.name}`; with --on-demand a run has a cluster of its own",
        )
    if ticket is None or not sky_shell.is_up(run_dir.name):
        raise Refused(f"{run_dir.name} has no node now", hint=f"`nemo-sky runs show {run_dir.name}`")
    return sky_shell.ssh_command(run_dir.name)


def status(run_dir: Path) -> State:
    """What became of the run; LOST when SkyPilot knows nothing of it and its journal names no end.

    Raises Refused when SkyPilot cannot be asked.
    """
    return _state(run_dir, None)


def _state(run_dir: Path, said: IO[str] | None) -> State:
    """See ``status``. ``said`` is the job's whole log where that has been followed."""
    if ended := _ended(run_dir):
        return ended
    ticket = _known(run_dir)
    if ticket is None:
        return State("LOST", reason="it was never started")
    asked = sky_calls.request_state(ticket.request) if ticket.request else None
    job = _job(ticket)
    if asked and asked.status == "FAILED" and (job is None or job.status not in ACTIVE):
        state = State("FAILED", reason=f"SkyPilot could not launch it: {asked.error}")
        return _finish(run_dir, ticket, state, job)
    if asked and asked.status in _UNDER_WAY and (job is None or not job.status):
        return State("SETUP", place=job.place if job else {}, links=sky_calls.links(ticket.job, job))
    if job is None or job.status is None:
        broken_off = asked is not None and asked.status != "SUCCEEDED"
        return _without_a_job(run_dir, ticket, job, broken_off)
    state = State(
        job.status,
        reason=job.reason,
        preemptions=_preemptions(run_dir, ticket, job),
        place=job.place,
        price_per_hour=job.price_per_hour,
        links=sky_calls.links(ticket.job, job),
    )
    return state if state.active else _finish(run_dir, ticket, state, job, said)


def _preemptions(run_dir: Path, ticket: Ticket, job: sky_calls.Job) -> int:
    if not job.recoveries:  # nothing is read for it
        return 0
    return sky_journal.preemptions(run_dir, ticket.submitted_at, job.recoveries, job.status in ACTIVE)


def _without_a_job(run_dir: Path, ticket: Ticket, cluster: sky_calls.Job | None, broken_off: bool) -> State:
    """SkyPilot has no job of this name: it is not there yet, or its nodes are gone, or its launch broke off
    when the API server did. ``cluster`` is what is left of it, or one whose nodes do not answer SkyPilot now:
    they may train all the same, and say so in the store."""
    if ticket.request is None and time.time() - ticket.submitted_at < GONE_S:
        return State("PENDING", reason="SkyPilot has not said yet whether it took it")
    if cluster and not broken_off and (why := sky_journal.goes_on(run_dir, ticket.submitted_at)):
        return State("RUNNING", reason=why, place=cluster.place, price_per_hour=cluster.price_per_hour)
    if end := sky_journal.end_of(run_dir, ticket.submitted_at):
        known = {"succeeded": "SUCCEEDED", "failed": "FAILED", **_NO_FAILURES}
        state = State(known.get(end["status"], "INTERRUPTED"), reason=end.get("reason") or None)
        return _finish(run_dir, ticket, state)
    if cluster:
        why = "its launch broke off" if broken_off else "its nodes answer nobody"
        why = f"{why}, and it may hold nodes: `nemo-sky down {run_dir.name}` releases them"
        return State("LOST", reason=why, place=cluster.place, price_per_hour=cluster.price_per_hour)
    return State("LOST", reason="its nodes are gone: preempted, brought down, or their time was up")


def _finish(
    run_dir: Path,
    ticket: Ticket,
    state: State,
    job: sky_calls.Job | None = None,
    said: IO[str] | None = None,
) -> State:
    """Keep the end of a run: its log, which a node is asked for unless ``said`` has it, then its state."""
    log = run_dir / "logs" / "sky.log"
    lines: list[str] = []
    if said:
        said.seek(0)
        lines = said.read().splitlines()
    else:
        with contextlib.suppress(Refused):
            lines = list(_log(ticket, job, wait=False, tail=0))
    if lines or not log.exists():
        runs.write_text(log, "".join(f"{line}\n" for line in lines))
    end = sky_journal.end_of(run_dir, ticket.submitted_at) if state.status == "FAILED" else None
    if end and end["status"] in _NO_FAILURES:
        state = replace(state, status=_NO_FAILURES[end["status"]], reason=end.get("reason"))
    elif state.status == "FAILED":  # unless our strategy did not recover it
        why = state.reason or ""
        known = next((status for words, status in CAPS.items() if f"{words}: " in why), "FAILED")
        state = replace(state, status=known)
    ended = replace(state, tail=tuple(lines[-TAIL:]))
    runs.write_text(run_dir / "state.json", ended.to_json())
    return ended


def _job(ticket: Ticket) -> sky_calls.Job | None:
    if ticket.managed:
        return sky_calls.managed_job(ticket.job, ticket.task)
    return sky_calls.cluster_job(ticket.job)


def _log(ticket: Ticket, job: sky_calls.Job | None, *, wait: bool, tail: int) -> Iterator[str]:
    """Lines of ``job``, which is looked for where it is None. Raises Refused when there is none."""
    job = job or _job(ticket)
    if job is None or job.job_id is None:
        raise Refused(f"SkyPilot has no job {ticket.job}")
    return sky_logs.job_log(job, ticket.managed, ticket.task, wait=wait, tail=tail)


def _ended(run_dir: Path) -> State | None:
    try:
        return State.from_json((run_dir / "state.json").read_text())
    except FileNotFoundError:
        return None


def _ticket(run_dir: Path) -> Ticket | None:
    try:
        return Ticket(**json.loads((run_dir / "sky.json").read_text()))
    except FileNotFoundError:
        return None


def _known(run_dir: Path) -> Ticket | None:
    """The ticket, with the request that this machine never heard of when SkyPilot can name it.

    Raises Refused when SkyPilot is set to another API server than the run's.
    """
    ticket = _ticket(run_dir)
    if ticket is None:
        return None
    if ticket.server and (now := sky_calls.server()) != ticket.server:
        raise Refused(
            f"{run_dir.name} was launched through {ticket.server}, and SkyPilot uses {now} now",
            hint=f"SKYPILOT_API_SERVER_ENDPOINT={ticket.server} for this command, or `sky api login`",
        )
    if ticket.request is None and (
        request := sky_calls.request_for(ticket.job, ticket.managed, ticket.submitted_at)
    ):
        ticket = replace(ticket, request=request)
        _save(run_dir, ticket)
    return ticket


def _save(run_dir: Path, ticket: Ticket) -> None:
    runs.write_text(run_dir / "sky.json", json.dumps(asdict(ticket)) + "\n")
