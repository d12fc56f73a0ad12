"""What the tests of the tiny family share: a small corpus, configs as the agent writes them, and a launch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from launcher.config import compose

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "tiny"
SENTENCES = [f"def f{n}(x):\n    return x * {n} + {n % 7}\n" for n in range(60)]


def make_corpus(folder: Path, *, vocab_size: int = 300) -> Path:
    """Pretraining data as `data/prep/pretrain` leaves it: 60 documents, two training shards."""
    from recipes.tiny import binidx, tokenizer

    encoder = tokenizer.train(SENTENCES, vocab_size)
    tokenizer.save(encoder, folder / "tokenizer")
    size, eod = encoder.get_vocab_size(), encoder.token_to_id(tokenizer.EOD)
    places = [("train", 0), ("train", 1), ("valid", 0), ("test", 0)]
    writers = {
        place: binidx.ShardWriter(folder / place[0] / f"shard_{place[1]:06d}", size) for place in places
    }
    for number, text in enumerate(SENTENCES * 4):
        tokens = [*encoder.encode(text).ids, eod]
        writers[places[number % len(places)]].add(tokens)
    binidx.write_blend(folder, writers)
    return folder


def write_config(
    stage: str,
    name: str,
    work: Path,
    inputs: Mapping[str, Any],
    overrides: Sequence[str] = (),
    file: str = "",
) -> Path:
    """``config/NAME.yaml`` of a stage with the node's folders under ``work``, as the agent writes it.

    ``inputs`` maps ``data,path`` and the like to values.
    """
    fields = {
        f"${{art:{key}}}": str(value) if isinstance(value, Path) else value for key, value in inputs.items()
    }
    folders = {f"$NEMO_SKY_{key.upper()}": str(work / key) for key in ("checkpoints", "output", "inputs")}
    folders["$NEMO_SKY_WORK"] = str(work)

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        if value in fields:
            return fields[value]
        for text, with_ in {**fields, **folders}.items():
            value = value.replace(text, str(with_))
        return value

    values = compose(RECIPES / stage / "config", name, list(overrides)).values
    work.mkdir(parents=True, exist_ok=True)
    path = work / (file or "config.yaml")
    path.write_text(yaml.safe_dump(fill(values)))
    return path


def environment(work: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NEMO_SKY_", "RAY_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NEMO_SKY_METRICS": str(work / "metrics.jsonl"),
        "NEMO_SKY_METADATA": str(work / "metadata.json"),
    }


def command(script: Path, *words: object, ranks: int = 0) -> list[str]:
    """The command line of a script: plain, or under torchrun with that many ranks on a free port."""
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, str(script), *map(str, words)]


def run(
    work: Path, script: Path, *words: object, ranks: int = 0, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end and check its exit status."""
    with subprocess.Popen(
        command(script, *words, ranks=ranks),
        env=environment(work),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # torchrun's ranks outlive it otherwise
            raise
    assert process.returncode == code, f"exit {process.returncode}\n{out[-4000:]}\n{err[-4000:]}"
    return subprocess.CompletedProcess(process.args, code, out, err)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
