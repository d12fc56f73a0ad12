"""Data preparation beside Megatron-LM's own way of doing it, on the same text, tokenizer and cores.

    python benchmarks/data_prep.py [--mb 200] [--workers 2]

The reference is what Megatron-LM's ``tools/preprocess_data.py`` does: a process pool tokenises line by line
(``imap`` in chunks of 32) and the parent writes every document with ``IndexedDatasetBuilder``. Ours is
``recipes/prep/pretrain.py``. The text is the Python source on this machine, repeated never. Also measured:
peak memory at a tenth of the text and at all of it, and whether a run on that tenth that is killed in the
middle and run again gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
END = "<|endoftext|>"
_encoder: Any = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=int, default=200, help="megabytes of text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the text and the outputs, kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(folder, arguments.mb, arguments.workers)
    print(json.dumps(result, indent=1))
    target = ROOT / "benchmarks/results/data_prep.json"
    target.parent.mkdir(exist_ok=True)
    kept: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {"note": "", "runs": []}
    kept["runs"].append(result)
    target.write_text(json.dumps(kept, indent=1) + "\n")


def measure(folder: Path, megabytes: int, workers: int) -> dict[str, Any]:
    whole, tenth = folder / "text.jsonl", folder / "tenth.jsonl"
    size = write_text(whole, megabytes * 1_000_000)
    write_text(tenth, size // 10)
    tokenizer = folder / "tokenizer.json"
    train_tokenizer(whole, tokenizer)
    started = time.monotonic()
    expected = reference(whole, tokenizer, folder / "reference", workers)
    reference_seconds = time.monotonic() - started
    small = prepared(folder, "small", tenth, tokenizer, workers)
    ours = prepared(folder, "ours", whole, tokenizer, workers)
    if ours["tokens"] != expected:
        raise SystemExit(f"{ours['tokens']} tokens, but the reference has {expected}")
    resumed = prepared(folder, "killed", tenth, tokenizer, workers, kill_after=0.5)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "workers": workers,
        "text_mb": round(size / 1e6, 1),
        "tokens": expected,
        "reference_seconds": round(reference_seconds, 1),
        "reference_tokens_per_second": round(expected / reference_seconds),
        "our_seconds": round(ours["seconds"], 1),
        "our_tokens_per_second": round(expected / ours["seconds"]),
        "ratio": round(reference_seconds / ours["seconds"], 2),
        "our_worker_peak_mb_at_a_tenth": small["peak_mb"],
        "our_worker_peak_mb_at_all": ours["peak_mb"],
        "killed_and_resumed_same_bytes": resumed["digest"] == small["digest"],
        "shards_kept_by_the_resumed_run": resumed["kept"],
    }


def write_text(target: Path, limit: int) -> int:
    """JSONL of Python files, each once, until ``limit`` bytes of text; returns how many there were."""
    written = 0
    seen: set[str] = set()
    roots = [Path(sys.base_prefix) / "lib", Path(sys.prefix) / "lib"]
    with target.open("w") as lines:
        for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
            try:
                text = path.read_text("utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            digest = hashlib.sha256(text.encode()).hexdigest()
            if not text.strip() or digest in seen:
                continue
            seen.add(digest)
            lines.write(json.dumps({"text": text}) + "\n")
            written += len(text.encode())
            if written >= limit:
                break
    return written


def train_tokenizer(text: Path, target: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with text.open() as lines:
        sample = [json.loads(line)["text"] for _, line in zip(range(800), lines, strict=False)]
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.save(str(target))


def _start(tokenizer: str) -> None:
    global _encoder
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Tokenizer.from_file(tokenizer)


def _encode(line: str) -> list[int]:
    ids: list[int] = _encoder.encode(json.loads(line)["text"], add_special_tokens=False).ids
    return [*ids, _encoder.token_to_id(END)]


def reference(text: Path, tokenizer: Path, prefix: Path, workers: int) -> int:
    """Tokens written by the reference approach."""
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(32_000))
    tokens = 0
    with (
        text.open() as lines,
        multiprocessing.get_context("spawn").Pool(workers, _start, (str(tokenizer),)) as pool,
    ):
        for ids in pool.imap(_encode, lines, 32):
            builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)])
            tokens += len(ids)
    builder.finalize(f"{prefix}.idx")
    return tokens


def prepared(
    folder: Path, name: str, text: Path, tokenizer: Path, workers: int, kill_after: float | None = None
) -> dict[str, Any]:
    """One run of ours: seconds, tokens, the greatest memory of any one process, a digest of the output."""
    config = {
        "output": str(folder / name),
        "sources": [{"name": "text", "path": str(text)}],
        "tokenizer": str(tokenizer),
        "shards": 8 * workers,
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    script = ROOT / "recipes/nano3/data/prep/pretrain/prep.py"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NEMO_SKY_METADATA": str(folder / f"{name}.metadata.json"),
    }
    receipts = folder / f"{name}.partial/.receipts"
    kept = 0
    if kill_after is not None:
        process = _started(script, file, environment)
        while process.poll() is None and len(list(receipts.glob("*.json"))) < 8 * workers * kill_after:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept = len(list(receipts.glob("*.json")))
    started = time.monotonic()
    process = _started(script, file, environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _greatest(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    metadata = json.loads((folder / f"{name}.metadata.json").read_text())
    return {
        "seconds": time.monotonic() - started,
        "tokens": metadata["total_tokens"],
        "peak_mb": round(peak / 1e6),
        "digest": _digest(folder / name),
        "kept": kept,
    }


def _started(script: Path, config: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(script), "--config", str(config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _greatest(pid: int) -> int:
    """Bytes that the largest worker of Ray under ``pid`` holds for itself."""
    greatest = 0
    try:
        for child in psutil.Process(pid).children(recursive=True):
            if any("ray::" in word for word in child.cmdline()[:1]):
                memory = child.memory_info()
                greatest = max(greatest, memory.rss - memory.shared)
    except psutil.Error:
        pass
    return greatest


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
