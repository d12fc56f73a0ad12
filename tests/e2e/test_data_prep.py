"""The preparation stages as they are run: bad data of every kind, SIGTERM and kill -9 in the middle."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import ROOT
from tests.prep import make_tokenizer, write_bad
from tests.rig import Rig, make_rig, until

STAGES = ("pretrain", "sft", "rl")
SHARDS = 12
# A machine that is busy with other tests starts Ray in a minute.
PATIENCE_S = 400.0
# Ray makes its workers yield to all others, and then this test waits for them.
BUSY = {"RAY_worker_niceness": "0"}


def script(stage: str) -> str:
    return str(ROOT / f"recipes/nano3/data/prep/{stage}/prep.py")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write_config(folder: Path, stage: str, tokenizer: str | Path, source: Path, **more: Any) -> Path:
    values: dict[str, Any] = {
        "output": str(folder / "data"),
        "sources": [{"name": "mine", "path": str(source)}],
        "splits": {"valid": 0.0, "test": 0.0},
        "shards": 1,
        **more,
    }
    if stage != "rl":
        values["tokenizer"] = str(tokenizer)
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(values))
    return file


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEMO_SKY_", "RAY_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **BUSY, **more}


def run(stage: str, config: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The stage's script on its own, and the metadata it wrote."""
    metadata = config.with_name("metadata.json")
    done = subprocess.run(
        [sys.executable, script(stage), "--config", str(config)],
        env=environment(NEMO_SKY_METADATA=str(metadata)),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return done, json.loads(metadata.read_text()) if metadata.exists() else {}


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_left_out_is_counted_and_reported(stage: str, tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    expected = write_bad(source / "bad.jsonl", stage)
    (source / "torn.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 10)[:11])
    pq.write_table(pa.table({"other": ["a", "b", "c"]}), source / "column.parquet")
    missing = {
        "pretrain": "no text under 'text'",
        "sft": "no chat under 'messages'",
        "rl": "no 'responses_create_params'",
    }[stage]
    expected[missing] += 3
    expected["damaged: the rest of the file is lost"] = 1

    done, metadata = run(stage, write_config(tmp_path / "run", stage, tokenizer, source))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert metadata["extra"]["bad_rows"] == {"mine": expected}
    for reason, count in expected.items():
        assert f"mine: left out {count}: {reason} (such as mine/" in done.stdout
    assert metadata["source_datasets"][0]["num_rows"] == 20


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_bad_row_is_refused_when_a_setting_says_so(
    stage: str, tokenizer: Path, tmp_path: Path
) -> None:
    source = tmp_path / "bad.jsonl"
    write_bad(source, stage)
    done, metadata = run(stage, write_config(tmp_path / "run", stage, tokenizer, source, on_bad="fail"))
    assert done.returncode == 2, done.stderr[-3000:]
    first = len(source.read_bytes().split(b"\n")[0]) + 1
    assert f"error: mine/bad.jsonl@{first}: not JSON (on_bad: skip leaves" in done.stderr
    assert "Traceback" not in done.stderr
    assert not metadata
    assert not (tmp_path / "run/data").exists()


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("kind", ["hub", "folder", "broken", ""])
def test_an_unknown_tokenizer_is_refused_in_one_line(stage: str, kind: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes(b'{"\xff')
    names = {"hub": "nobody/no-such-model", "folder": "./nowhere", "broken": str(broken), "": ""}
    source = tmp_path / "bad.jsonl"
    write_bad(source, stage)
    done, _ = run(stage, write_config(tmp_path / "run", stage, names[kind], source))
    assert done.returncode == 2, done.stderr[-3000:]
    assert "tokenizer" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/data").exists()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some MB of Python, among it one document that is longer than a piece."""
    sources = [path.read_text() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    texts = [*sources, "\n".join(sources[:60])]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(text: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done, _ = run("pretrain", write_config(folder, "pretrain", tokenizer, text, shards=SHARDS))
    assert done.returncode == 0, done.stderr[-3000:]
    return digests(folder / "data")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with make_rig(tmp_path) as made:
        made.job |= {"output": None, "checkpoints": None}
        made.env |= {"PYTHONPATH": str(ROOT), **BUSY}
        yield made


def test_stopped_and_killed_in_the_middle_gives_the_same_bytes(
    text: Path, tokenizer: Path, undisturbed: dict[str, str], rig: Rig, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = write_config(folder, "pretrain", tokenizer, text, shards=SHARDS)
    command = [sys.executable, script("pretrain"), "--config", str(config)]
    receipts = folder / "data.partial/.receipts"

    def done() -> int:
        return len(list(receipts.glob("mine-*.json")))

    def at(count: int) -> Callable[[], bool]:
        return lambda: done() >= count

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    # SIGTERM: status 75, and the log says what is kept.
    process = started()
    until(at(1), PATIENCE_S)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, printed
    assert f"stopped: {done()} of {SHARDS} shards are saved" in printed
    assert "Traceback" not in printed

    # The same, under the agent.
    before = done()
    process = rig.start(*command)
    until(at(before + 1), PATIENCE_S)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, printed
    assert f"{before} of {SHARDS} shards are there already" in printed
    assert f"stopped: {done()} of {SHARDS} shards are saved" in printed
    assert "interrupted: SIGTERM" in printed
    until(lambda: not rig.alive())

    # kill -9, and no time for anything.
    before = done()
    process = started()
    until(at(before + 1), PATIENCE_S)
    process.kill()
    process.communicate()
    between = done()
    assert before < between < SHARDS
    assert not (folder / "data").exists()

    finished, _ = run("pretrain", config)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert " shards are there already" in finished.stdout
    assert digests(folder / "data") == undisturbed
