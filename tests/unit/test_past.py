"""What earlier runs measured: those of every project that shares the store, and no others."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from launcher import job, project
from launcher import plan as plans
from launcher.artifacts.store import FileStore, Store, StoreError, open_store, soon
from launcher.cli.main import main
from launcher.money import catalogs, past
from launcher.money.estimate import Past
from launcher.money.want import alternatives
from tests.unit.earlier_runs import ended
from tests.unit.test_quote import CATALOGS, NANO3, ROOT

PRETRAIN = "nano3/pretrain"
WITHOUT = "computed without the artifact store, its inputs and earlier runs: cannot list"
SPEEDS = (10.0, 90.0, 100.0, 110.0, 105.0)


def found(store: Store, name: str = PRETRAIN, config: str = "default", **values: Any) -> list[Past]:
    runs, trouble = past.past_of(store, name, config, values or NANO3, 60.0)
    assert trouble == []
    return runs


def test_speeds_come_from_the_journals_in_the_store(store: Store) -> None:
    run_id = ended(store, PRETRAIN, "20261121-100000", gpus="H100:8", nodes=2, values=NANO3, speeds=SPEEDS)
    assert found(store) == [Past(run_id, "H100", 16, 2, 105.0, 1.5, 2000)]
    assert found(store, config="full") == []
    assert found(store, "nano3/sft") == []
    assert found(store, "nano3/pre") == []


def test_a_run_without_gpus_says_how_long_it_took(store: Store) -> None:
    run_id = ended(store, "tiny/data/prep/sft", "20261121-100000", values={"docs": 3})
    ended(store, "tiny/data/prep", "20261121-100000", values={"docs": 3}, hours=9.0)
    assert found(store, "tiny/data/prep/sft", docs=3) == [Past(run_id, None, 0, 1, None, 1.5)]
    assert [run.hours for run in found(store, "tiny/data/prep", docs=3)] == [9.0]


def test_a_run_of_another_model_measured_something_else(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    model = {"model": {"layers": 4, "path": "/home/bob/weights"}, "lr": 1}
    ended(store, PRETRAIN, "20261121-100000", values=model)
    token = "$NEMO_SKY_INPUTS/weights"
    assert len(found(store, model={"layers": 4, "path": token}, lr=2)) == 1
    assert found(store, model={"layers": 8, "path": token}) == []
    assert found(store, model={"layers": 4, "path": token, "heads": 2}) == []
    assert found(store, lr=1) == []


def test_the_newest_come_first_and_only_so_many_are_read(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    ids = [ended(store, PRETRAIN, f"202611{day:02}-100000", values=NANO3) for day in range(1, 31)]
    assert [run.run_id for run in found(store)] == ids[: -past.RUNS - 1 : -1]
    for run_id in ids[-past.LOOKED_AT :]:
        store.put_bytes(f"runs/{run_id}/journal/1.jsonl", b'{"seq": 1}\nnot JSON\n')
    assert found(store) == []
    store.delete_prefix(f"runs/{ids[-1]}")
    assert [run.run_id for run in found(store)] == [ids[-past.LOOKED_AT - 1]]


def test_an_attempt_that_was_killed_counts_to_its_last_event(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    facts: dict[str, Any] = {"gpus": "H100:8", "values": NANO3}
    run_id = ended(store, PRETRAIN, "20261121-100000", hours=None, speeds=[70.0], **facts)
    key = f"runs/{run_id}/journal/1.jsonl"
    first, last = (json.loads(line) for line in (store.get_bytes(key) or b"").splitlines())
    last["ts"] = first["ts"] + 7200
    store.put_bytes(key, "".join(f"{json.dumps(event)}\n" for event in (first, last)).encode() + b'{"se')
    assert found(store) == [Past(run_id, "H100", 8, 1, 70.0, None, 2000)]
    ended(store, PRETRAIN, "20261121-100000", hours=1.0, attempt=2, speeds=[90.0], **facts)
    assert found(store) == [Past(run_id, "H100", 8, 1, 90.0, 3.0, 2000)]
    facts["gpus"] = "A100:8"
    ended(store, PRETRAIN, "20261121-100000", hours=1.0, attempt=3, speeds=[50.0], **facts)
    assert found(store) == [Past(run_id, "A100", 8, 1, 50.0, None, 2000)]


def test_a_long_journal_is_read_in_part(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    run_id = ended(store, PRETRAIN, "20261121-100000", gpus="H100:8", values=NANO3, hours=None)
    key = f"runs/{run_id}/journal/1.jsonl"

    def lines(speeds: Iterable[int]) -> bytes:
        events = ({"type": "metrics", "points": [{"key": "tokens_per_second", "value": n}]} for n in speeds)
        return "".join(f"{json.dumps(event)}\n" for event in events).encode()

    slow, fast = lines([1] * 100) * 900, lines(range(100, 200)) * 1100
    store.put_bytes(key, (store.get_bytes(key) or b"") + slow + fast)
    began = time.process_time()
    [run] = found(store)
    assert time.process_time() - began < 0.2, "0.6 s for all lines"
    assert run.tokens_per_second == pytest.approx(150, abs=10)


@pytest.mark.parametrize(
    ("accelerators", "said"),
    [("H100:8", {"gpus": "H100:8"}), (None, {"gpus": None}), (["H100:8", "H200:8"], {})],
)
def test_the_journal_says_the_gpus_where_the_launch_knows_them(
    accelerators: Any, said: dict[str, Any]
) -> None:
    assert job.gpus_of({"resources": {"accelerators": accelerators} if accelerators else {}}) == said
    markets = [{"use_spot": True}, {"use_spot": False}]
    base, ways = alternatives({"accelerators": accelerators, "ordered": markets})
    assert job.gpus_of({"resources": {**base, "ordered": ways}}) == said


# The command.


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogs.FOLDER_ENV, str(CATALOGS))
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


def checkout(root: Path, settings: str) -> Path:
    """A project of somebody's with the recipes that are shipped."""
    root.mkdir()
    for name in ("recipes", "clusters"):
        (root / name).symlink_to(ROOT / name)
    (root / "nemo-sky.yaml").write_text(settings)
    return root


def plan(capsys: pytest.CaptureFixture[str], root: Path, *more: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as end:
        main(["plan", "nano3", "pretrain", "--cloud", "aws", "--json", "--project", str(root), *more])
    assert end.value.code == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.usefixtures("machine")
def test_another_checkout_with_the_same_store_knows_what_the_first_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = f"artifacts: {tmp_path / 'store'}\n"
    mine, theirs = (checkout(tmp_path / name, settings) for name in ("mine", "theirs"))
    [before] = {row["work_from"] for row in plan(capsys, theirs)["rows"]}
    assert "MFU 0.25 (assumed)" in before
    # A run that `mine` launched; nothing of it is in the folder of `theirs`.
    here = project.read(mine)
    request = plans.Request("nano3", "pretrain", cluster="aws")
    [draft] = plans.plans(request, here, plans.select(request, here))
    store = open_store(here.artifacts)
    run_id = ended(
        store, PRETRAIN, "20261121-100000", gpus="H100:8", nodes=2, values=draft.values, speeds=[5e5]
    )
    facts = plan(capsys, theirs)
    assert {row["work_from"] for row in facts["rows"]} == {f"run {run_id}: 500,000 tokens/s"}
    assert facts["rows"][0]["work_hours"] == pytest.approx(facts["tokens"] / 5e5 / 3600)
    assert facts["notes"] == []
    assert not (theirs / ".nemo-sky" / "runs").exists()


@pytest.mark.usefixtures("machine")
def test_a_plan_does_without_a_store_that_does_not_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One that accepts connections and says nothing, as behind a firewall; and one that cannot be listed."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        silent = open_store("s3://bucket/prefix", endpoint)
        began = time.monotonic()
        assert past.past_of(silent, PRETRAIN, "default", NANO3, 0.3) == (
            [],
            ["no earlier run was looked at: s3://bucket/prefix did not answer within 0.3 seconds"],
        )
        assert time.monotonic() - began < 1
        with pytest.raises(StoreError, match=r"did not answer within 0\.2 seconds"):
            soon(silent, 0.2, lambda: silent.children(""))
    broken = checkout(tmp_path / "broken", f"artifacts: {tmp_path / 'store'}\n")
    for folder, said in (("runs", "no earlier run was looked at: cannot list"), ("artifacts", WITHOUT)):
        loop = tmp_path / "store" / folder
        loop.parent.mkdir(exist_ok=True)
        loop.symlink_to(loop)
        facts = plan(capsys, broken)
        assert facts["best"]["cost_usd"] > 0
        [note] = facts["notes"]
        assert note.startswith(f"{said} {loop}")
    with pytest.raises(SystemExit):
        main(["plan", "nano3", "pretrain", "--cloud", "aws", "--project", str(broken)])
    assert note in capsys.readouterr().err.splitlines()
