"""Data preparation beside Megatron-LM's own way of doing it, on the same text, tokenizer and cores.

    python benchmarks/data_prep.py [--mb 200] [--workers 2] [--text FOLDER ...] [--keep FOLDER] [--together]

The reference is benchmarks/megatron_preprocess.py; ours is the script of nano3/data/prep/pretrain, Ray and
all. Both are timed from start to end, imports included. They run by turns, some seconds each, the other one
stopped meanwhile, or with --together at the same time: either way, whatever else the machine does slows both
alike. Memory is that of all processes of a run together, every second: the proportional share (PSS), which
counts a shared page once, and the plain sum (RSS). The documents of both outputs are compared, token by
token.

The text is what lies on this machine, each file once: documentation under /usr/share and the source of
Python libraries; the ten largest files are all in the whole and none is in the tenth. Files that spell the
tokenizer's own special token are left out: to us it is text like any other, to Megatron-LM the token. Then a
run on all of the text is killed (-9) in the middle and run again: are the bytes those of the run that was not
killed?
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
END = "<|endoftext|>"
VOCABULARY = 131_072
KINDS = {".py", ".md", ".rst", ".txt", ".html"}
LARGE = 10
FIRST_TURN_S, TURN_S = 60.0, 10.0
# Mistral's Tekken expression, which Nemotron's tokenizers have too.
EXPRESSION = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=int, default=200, help="megabytes of text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--text", type=Path, nargs="+", help="folders of text, instead of this machine's")
    parser.add_argument("--together", action="store_true", help="not by turns: for a machine that is busy")
    parser.add_argument("--keep", type=Path, help="folder for the text and the outputs, kept")
    arguments = parser.parse_args()
    roots = arguments.text or [Path("/usr/share"), Path(sys.base_prefix) / "lib", Path(sys.prefix) / "lib"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(folder, roots, arguments.mb * 1_000_000, arguments.workers, arguments.together)
    print(json.dumps(result, indent=1))
    target = ROOT / "benchmarks/results/data_prep.json"
    target.parent.mkdir(exist_ok=True)
    kept: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {"runs": []}
    kept["runs"].append(result)
    target.write_text(json.dumps(kept, indent=1) + "\n")


def measure(folder: Path, roots: list[Path], wanted: int, workers: int, together: bool) -> dict[str, Any]:
    sizes = write_texts(folder, roots, wanted)
    train_tokenizer(folder / "tenth.jsonl", folder / "tokenizer")
    result: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "workers": workers,
        "run": "together" if together else f"by turns of {TURN_S:.0f} s, the first {FIRST_TURN_S:.0f} s",
    }
    for name in ("tenth", "whole"):
        before = os.getloadavg()[0]
        ours = Side(our_command(folder, name, f"ours-{name}", workers))
        theirs = Side(their_command(folder, name, workers))
        race([ours, theirs], together)
        documents = digests_of(sorted((folder / f"ours-{name}").rglob("*.bin")))
        if documents != digests_of([folder / f"theirs-{name}_text_document.bin"]):
            raise SystemExit(f"{name}: the two outputs do not hold the same documents")
        tokens = json.loads((folder / f"ours-{name}.metadata.json").read_text())["total_tokens"]
        result[name] = {
            "text_mb": round(sizes[name] / 1e6, 1),
            "documents": len(documents),
            "tokens": tokens,
            "same_documents": True,
            "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
            "ours": ours.told(tokens),
            "reference": theirs.told(tokens),
            "ratio": round(theirs.seconds / ours.seconds, 2),
            "ratio_of_cpu_seconds": round(theirs.cpu / ours.cpu, 2),
        }
        print(json.dumps(result[name]), file=sys.stderr, flush=True)
    for side in ("ours", "reference"):
        grown = result["whole"][side]["peak_pss_mb"] / result["tenth"][side]["peak_pss_mb"]
        result[f"{side}_memory_growth"] = round(grown, 2)
    result["killed"] = killed(folder, workers)
    return result


def write_texts(folder: Path, roots: list[Path], wanted: int) -> dict[str, int]:
    """``whole.jsonl`` and ``tenth.jsonl``, files in the order of their digests; bytes of text in each."""
    found: dict[str, tuple[int, Path]] = {}
    for path in (path for root in roots for path in root.rglob("*")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.suffix in KINDS and path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                if data.decode().strip() and END.encode() not in data:
                    found[hashlib.sha256(data).hexdigest()] = len(data), path
    largest = sorted(found, key=lambda digest: found[digest], reverse=True)[:LARGE]
    rest = sorted(found.keys() - set(largest))

    def first(limit: int) -> list[str]:
        chosen, size = [], 0
        for digest in rest:
            if size >= limit:
                break
            chosen.append(digest)
            size += found[digest][0]
        return chosen

    whole = sorted([*largest, *first(wanted - sum(found[digest][0] for digest in largest))])
    sizes = {}
    for name, chosen in (("whole", whole), ("tenth", first(wanted // 10))):
        with (folder / f"{name}.jsonl").open("w") as lines:
            for digest in chosen:
                lines.write(json.dumps({"text": found[digest][1].read_bytes().decode()}) + "\n")
        sizes[name] = sum(found[digest][0] for digest in chosen)
    return sizes


def train_tokenizer(text: Path, folder: Path) -> None:
    """One like Nemotron's, which cannot be fetched here: its expression and size, other merges."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(EXPRESSION), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with text.open() as lines:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


@dataclass
class Command:
    arguments: list[str]
    environment: dict[str, str]


def our_command(folder: Path, text: str, name: str, workers: int) -> Command:
    config = {
        "output": str(folder / name),
        "sources": [{"name": "text", "path": str(folder / f"{text}.jsonl")}],
        "tokenizer": str(folder / "tokenizer"),
        "shards": 8 * workers,
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    script = ROOT / "recipes/nano3/data/prep/pretrain/prep.py"
    metadata = {"NEMO_SKY_METADATA": str(folder / f"{name}.metadata.json")}
    return Command(
        [sys.executable, str(script), "--config", str(file)],
        # Ray makes its workers yield to all others (nice 15); Megatron's do not.
        {**os.environ, **metadata, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"},
    )


def their_command(folder: Path, text: str, workers: int) -> Command:
    script = str(ROOT / "benchmarks/megatron_preprocess.py")
    paths = [str(folder / f"{text}.jsonl"), str(folder / f"theirs-{text}"), str(folder / "tokenizer")]
    return Command([sys.executable, script, *paths, str(workers)], dict(os.environ))


@dataclass
class Side:
    """A run that can be stopped and continued, and what it used."""

    command: Command
    seconds: float = 0.0
    peak_pss: int = 0
    peak_rss: int = 0
    peak_largest: int = 0
    used: dict[tuple[int, float], float] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def cpu(self) -> float:
        return sum(self.used.values())

    @property
    def running(self) -> bool:
        return self.process is None or self.process.poll() is None

    def turn(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let it run for so long or to its end, then stop it; or until ``enough``, and leave it running.

        Raises SystemExit when it fails.
        """
        started = time.monotonic()
        if self.process is None:
            self.process = subprocess.Popen(
                self.command.arguments,
                env=self.command.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._signal(signal.SIGCONT)
        sampled = 0.0
        while self.running and time.monotonic() - started < seconds:
            if enough():
                return
            if time.monotonic() - sampled >= 1:
                self.sample()
                sampled = time.monotonic()
            time.sleep(0.05)
        self.sample()
        self._signal(signal.SIGSTOP)
        self.seconds += time.monotonic() - started
        if self.process.poll():
            raise SystemExit(f"{self.command.arguments} ended with {self.process.returncode}")

    def kill(self) -> None:
        """As kill -9 of its process group, with nothing to clean up after."""
        if not self.process:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def tree(self) -> list[psutil.Process]:
        assert self.process
        with contextlib.suppress(psutil.Error):
            main = psutil.Process(self.process.pid)
            return [main, *main.children(recursive=True)]
        return []

    def sample(self) -> None:
        pss = rss = 0
        for process in self.tree():
            with contextlib.suppress(psutil.Error, OSError, IndexError):
                times = process.cpu_times()
                self.used[process.pid, process.create_time()] = times.user + times.system
                share = _pss(process.pid)
                pss += share
                rss += process.memory_info().rss
                self.peak_largest = max(self.peak_largest, share)
        self.peak_pss, self.peak_rss = max(self.peak_pss, pss), max(self.peak_rss, rss)

    def _signal(self, number: int) -> None:
        told: set[int] = set()
        while new := {process.pid for process in self.tree()} - told:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= new

    def told(self, tokens: int) -> dict[str, float]:
        return {
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(tokens / self.seconds),
            "cpu_seconds": round(self.cpu, 1),
            "tokens_per_cpu_second": round(tokens / self.cpu),
            "peak_pss_mb": round(self.peak_pss / 1e6),
            "peak_rss_mb": round(self.peak_rss / 1e6),
            "largest_process_peak_pss_mb": round(self.peak_largest / 1e6),
        }


def race(sides: list[Side], together: bool) -> None:
    """All to their ends, by turns. The first is long: what starts up does not like to be stopped."""
    seconds = FIRST_TURN_S
    try:
        if together:
            with ThreadPoolExecutor(len(sides)) as pool:
                list(pool.map(lambda side: side.turn(math.inf), sides))
        while any(side.running for side in sides):
            for side in sides:
                if side.running:
                    side.turn(seconds)
            seconds = TURN_S
    finally:
        for side in sides:
            if side.running:
                side.kill()


def killed(folder: Path, workers: int) -> dict[str, Any]:
    """A run on all of the text, killed when half of its shards are there, and run again."""
    receipts = folder / "killed.partial/.receipts"
    first = Side(our_command(folder, "whole", "killed", workers))

    def done() -> int:
        return len(list(receipts.glob("text-*.json")))

    first.turn(math.inf, lambda: done() >= 4 * workers)
    first.kill()
    kept = done()
    Side(our_command(folder, "whole", "killed", workers)).turn(math.inf)
    same = [digest_of(folder / name) for name in ("killed", "ours-whole")]
    return {"shards_kept": kept, "shards": 8 * workers, "same_bytes": same[0] == same[1]}


def digests_of(files: list[Path]) -> list[bytes]:
    """Of each document in bin/idx files, sorted."""
    return sorted(digest for file in files for digest in _documents(file))


def _documents(file: Path) -> Iterator[bytes]:
    index = file.with_suffix(".idx").read_bytes()
    code, count = struct.unpack_from("<BQ", index, 17)
    lengths = np.frombuffer(index, np.int32, count, 34)
    size = {4: 4, 8: 2}[code]
    with file.open("rb") as data:
        for length in lengths:
            yield hashlib.blake2b(data.read(int(length) * size), digest_size=16).digest()


def digest_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        line = next(line for line in file if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
