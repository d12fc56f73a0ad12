"""The clouds' own command line tools, asked side by side for JSON and never waited for beyond a deadline."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNREADABLE = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError)
"""What reading an answer of another form than is known raises."""
_WHY_CHARS = 200


@dataclass(frozen=True)
class Answer:
    """``value`` is the parsed JSON; ``why`` says, instead, why there is none."""

    value: Any = None
    why: str | None = None


Command = tuple[str, ...]
Ask = Callable[[Sequence[Command], float], list[Answer]]


def remembering() -> Ask:
    """``ask`` that asks nothing twice: the stages of a launch go to the same regions. A tool that did not
    answer is not waited for again."""
    known: dict[Command, Answer] = {}

    def once(commands: Sequence[Command], until: float) -> list[Answer]:
        new = [words for words in dict.fromkeys(commands) if words not in known]
        known.update(zip(new, ask(new, until), strict=True))
        return [known[words] for words in commands]

    return once


def ask(commands: Sequence[Command], until: float) -> list[Answer]:
    """What each command printed, in their order; ``until`` is of ``time.monotonic``.

    All run at once. Whatever still runs at ``until`` is killed with its children: both tools are shell
    scripts around a Python. They get no input, so that none can wait for an answer.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = [_start(words, folder / str(at), stack) for at, words in enumerate(commands)]
        return [_answer(one, until) for one in running]


@dataclass(frozen=True)
class _Running:
    name: str
    process: subprocess.Popen[bytes]
    said: Path


def _start(words: Command, said: Path, stack: ExitStack) -> _Running | Answer:
    """It prints to files, ``said`` and a suffix: a full pipe would hold it up until it is read."""
    program = shutil.which(words[0])
    if program is None:
        return Answer(why=f"{words[0]} is not installed here")
    try:
        with said.with_suffix(".out").open("wb") as out, said.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                [program, *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
    except OSError as error:
        return Answer(why=f"{program} does not start: {error.strerror}")
    stack.callback(_kill, process)
    return _Running(words[0], process, said)


def _answer(one: _Running | Answer, until: float) -> Answer:
    if isinstance(one, Answer):
        return one
    try:
        code = one.process.wait(max(until - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return Answer(why=f"{one.name} did not answer in time")
    if code:
        return Answer(why=f"{one.name}: {_error(one.said.with_suffix('.err')) or f'exit code {code}'}")
    try:
        return Answer(json.loads(one.said.with_suffix(".out").read_bytes()))
    except ValueError:
        return Answer(why=f"{one.name} answered no JSON")


def _error(err: Path) -> str:
    """The error among the lines of stderr, which may begin with warnings."""
    text = err.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines[-1:] or [""])[0].removeprefix("ERROR: ")[:_WHY_CHARS]


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
