"""The agent heeds the cloud's notice that an instance is about to be taken away."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import history
from launcher.agent import limits
from launcher.agent.ends import Ended
from launcher.agent.rendezvous import Attempt
from launcher.artifacts import checkpoints
from launcher.money.account import Entry
from launcher.money.ledger import account_name, now_ms, open_ledger
from launcher.money.receipts import kept_until
from tests.metadata import AWS_SPOT, GCP_NOTICE, Metadata, metadata
from tests.rig import Rig, make_rig

AGREEING = Path(__file__).with_name("agreeing.py")
LEASE = {"setup": 0, "check": 2000, "save": 1000, "teardown": 0}
TRAINING = ("10000", "save=10000", "sleep=0.02")  # it saves when it is asked to, and not before


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with make_rig(tmp_path) as made:
        made.job |= {"submission": "one", "money": {"lease": LEASE}}
        yield made


@pytest.fixture
def instance() -> Iterator[Metadata]:
    with metadata() as made:
        yield made


def on(instance: Metadata, cloud: str = "AWS") -> dict[str, str]:
    """The environment of an agent on that instance."""
    return {
        "SKYPILOT_CLUSTER_INFO": json.dumps({"cloud": cloud, "region": "us-east-1", "zone": "us-east-1a"}),
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{instance.address}",
        "GCE_METADATA_HOST": instance.address,
    }


def says(process: subprocess.Popen[str], text: str) -> str:
    """Read what the agent prints up to a line with ``text``."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail("".join(lines))


def entry(rig: Rig, attempt: int) -> Entry:
    held = open_ledger(rig.store).read(account_name(rig.run_id, None)).of(rig.run_id)
    return next(one for one in held if one.attempt == attempt)


def events(rig: Rig, attempt: int, kind: str) -> list[dict[str, Any]]:
    return [event for event in rig.journal(attempt) if event["type"] == kind]


def test_it_saves_and_waits_for_its_end_and_the_next_attempt_goes_on_there(
    rig: Rig, instance: Metadata, tmp_path: Path
) -> None:
    process = rig.start("10000", "save=20", "sleep=0.02", **on(instance))
    rig.until(lambda: checkpoints.newest(rig.store, rig.run_id))
    leaves_at = time.time() + 60
    instance.take_away(leaves_at)
    clock = time.strftime("%H:%M:%S", time.gmtime(leaves_at))
    printed = says(process, "waiting until it is gone")
    assert f"the cloud takes node 0 away at {clock} UTC: the command has " in printed
    newest = checkpoints.newest(rig.store, rig.run_id)
    assert newest
    assert f"saved at {newest.step}\n" in printed, "when it was asked to, and not by its interval"
    (told,) = rig.until(lambda: events(rig, 1, "notice"))
    assert told["leaves_at"] == int(leaves_at)
    rig.until(lambda: events(rig, 1, "checkpoint")[-1]["step"] == newest.step)
    # It lives as long as its instance, and its lease with it.
    until = entry(rig, 1).until
    rig.until(lambda: entry(rig, 1).until > until + LEASE["check"])
    assert process.poll() is None
    process.kill()
    process.wait()
    lost = rig.journal(1)
    assert history.attempt_facts(lost)["status"] == "preempted"
    ended = entry(rig, 1)
    assert ended.ended is None
    assert 0 < ended.until - now_ms() <= 4000, "to the end of its lease, and no longer"
    assert kept_until(lost, ended.until) == ended.until, "no step was lost"
    with pytest.raises(Ended, match="preempted 1 times"):
        limits.check([lost], "one", 0)
    again = rig.run(str(newest.step + 5), NEMO_SKY_WORK=str(tmp_path / "other"))
    assert f"starts at {newest.step} of" in again
    assert events(rig, 2, "restored")[0]["step"] == newest.step


def test_two_nodes_save_together_where_one_is_to_go_and_end_when_cancelled(
    rig: Rig, instance: Metadata
) -> None:
    words = (sys.executable, str(AGREEING), str(rig.folder))
    two = {"SKYPILOT_NUM_NODES": "2", "NEMO_SKY_GRACE_S": "30"}
    other = {"SKYPILOT_NODE_RANK": "1", "NEMO_SKY_WORK": str(rig.folder / "other")}
    with metadata() as healthy:
        lead = rig.start(*words, **two, **on(healthy, "GCP"))
        member = rig.start(*words, **two, **other, **on(instance, "GCP"))
        rig.until(lambda: events(rig, 1, "metrics"))
        instance.there[GCP_NOTICE] = "TRUE"
        for process in (lead, member):
            printed = says(process, "waiting until it is gone")
            assert "the cloud takes node 1 away at" in printed
            assert " saved at " in printed
        newest = checkpoints.newest(rig.store, rig.run_id)
        assert newest
        assert {file.path for file in newest.files} >= {"state-0.json", "state-1.json"}
        (told,) = rig.until(lambda: events(rig, 1, "notice"))
        assert 0 < told["leaves_at"] - time.time() < 30
        Attempt(rig.store, rig.run_id, 1).stop("cancelled", 75, "cancelled")
        for process in (lead, member):
            rig.finish(process, 75)
    end = rig.journal(1)[-1]
    assert (end["status"], end["reason"]) == (
        "cancelled",
        f"cancelled; checkpoint {newest.step} is committed",
    )


@pytest.mark.parametrize("code", [0, 1])
def test_a_command_that_ends_with_another_nodes_has_neither_failed_nor_succeeded(rig: Rig, code: int) -> None:
    """Between two looks at the store it ends: it has saved together with its peers, or they have gone."""
    word = f"runs/{rig.run_id}/attempts/1/stop.json"
    facts = {"status": "interrupted", "code": 75, "reason": "node 1 goes", "leaves_at": time.time() - 299}
    stop = Path(rig.job["artifacts"]) / word
    script = (
        f"import os, pathlib; stop = pathlib.Path({str(stop)!r}); stop.parent.mkdir(exist_ok=True)\n"
        f"stop.write_text({json.dumps(facts)!r}); os._exit({code})"
    )
    rig.run(sys.executable, "-c", script, code=75)
    assert rig.journal(1)[-1]["status"] == "interrupted"


def test_an_instance_that_lives_on_is_left_in_the_end(rig: Rig, instance: Metadata) -> None:
    """Its time was long ago; it has a second to save."""
    process = rig.start(*TRAINING, **on(instance))
    rig.until(lambda: events(rig, 1, "metrics"))
    instance.take_away(time.time() - 290)
    printed = rig.finish(process, 75)
    assert "the command has 1 s to save and end" in printed
    assert "it is still there, and this ends all the same" in printed
    end = rig.journal(1)[-1]
    newest = checkpoints.newest(rig.store, rig.run_id)
    assert newest
    assert end["status"] == "interrupted"
    assert end["reason"].endswith(f"UTC; checkpoint {newest.step} is committed")
    assert history.attempt_facts(rig.journal(1))["status"] == "interrupted"


def test_a_notice_in_the_set_up_is_waited_for_until_a_signal(rig: Rig, instance: Metadata) -> None:
    """Node 0 waits for a node that never comes."""
    instance.take_away(time.time() + 60)
    process = rig.start(*TRAINING, SKYPILOT_NUM_NODES="2", **on(instance))
    says(process, "nothing was running yet; waiting until it is gone")
    assert process.poll() is None
    process.terminate()
    assert "rank 0 starts" not in rig.finish(process, 75)
    assert "before the command ran" in rig.journal(1)[-1]["reason"]


def test_a_cap_ends_the_wait(rig: Rig, instance: Metadata) -> None:
    deadline = round((time.time() + 30) * 1000)
    rig.job["money"] = {"deadline": deadline, "lease": {**LEASE, "check": 1000}}
    instance.take_away(time.time() + 120)
    process = rig.start(*TRAINING, **on(instance))
    says(process, "waiting until it is gone")
    assert "time to save is over" not in rig.finish(process, 78)
    assert rig.journal(1)[-1]["status"] == "deadline reached"


def test_a_signal_in_the_save_does_not_kill_it(rig: Rig, instance: Metadata) -> None:
    """A machine that shuts down sends one to all its processes."""
    code = (
        "import signal, time\n"
        "signal.signal(15, lambda *_: (time.sleep(3), print('saved all', flush=True), exit(0)))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    process = rig.start(sys.executable, "-c", code, **on(instance, "GCP"))
    says(process, "ready")
    instance.there[GCP_NOTICE] = "TRUE"
    says(process, "s to save and end")
    process.terminate()
    assert "saved all" in rig.finish(process, 75)


def test_on_demand_and_on_slurm_there_is_no_notice(rig: Rig, instance: Metadata) -> None:
    instance.take_away(time.time() + 60)
    rig.finish(rig.start("20", "save=10", **on(instance, "Slurm")), 0)
    assert instance.asked == []
    instance.there[AWS_SPOT] = "on-demand"
    rig.run_id += "-b"
    rig.finish(rig.start("20", "save=10", "sleep=0.05", **on(instance)), 0)
    assert instance.asked == [AWS_SPOT]
