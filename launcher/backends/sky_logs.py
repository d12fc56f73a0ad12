"""SkyPilot's logs as lines: what a launch says, then what a job prints, with our own marks of its nodes."""

from __future__ import annotations

import io
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator

from launcher.backends.sky_calls import ANSI, Job, calls, said
from launcher.errors import Refused

_PREFIX = re.compile(
    r"^(?:\x1b\[[0-9;]*m)*\((?P<who>[^()]*?)(?:, rank=(?P<rank>\d+))?, pid=\d+(?:, ip=[^)]*)?\)"
    r"(?:\x1b\[[0-9;]*m)* ?"
)


def launch_log(request: str, name: str, managed: bool) -> Generator[str, None, Job | None]:
    """What SkyPilot says while it carries a launch out, until it is done. Gives the job ``name`` that it
    made, None where that is not told. Raises Refused when the launch fails."""
    with calls() as sky:
        pass
    made = yield from _stream(lambda out: sky.stream_and_get(request, output_stream=out))
    number = made[0] if isinstance(made, tuple) and made else None
    if not isinstance(number, int):
        return None
    return Job(None, job_id=number, cluster=None if managed else name)


def job_log(job: Job, managed: bool, task: int, *, wait: bool, tail: int) -> Iterator[str]:
    """The job's log, lines of several nodes marked ``[node R] ``; ``tail`` 0 is from its beginning.

    Raises Refused when SkyPilot has none.
    """
    with calls() as sky:
        pass

    def read(out: io.TextIOBase) -> object:
        if managed:
            return sky.jobs.tail_logs(
                job_id=job.job_id, follow=wait, tail=tail or None, task=task, output_stream=out
            )
        return sky.tail_logs(job.cluster, job.job_id, follow=wait, tail=tail, output_stream=out)

    for line in _stream(read):
        if (plain := plain_line(line)) is not None:
            yield plain


def plain_line(line: str) -> str | None:
    """A line of SkyPilot's log without its prefix; of several nodes with ours; None for its own chatter."""
    found = _PREFIX.match(line)
    if not found:
        text = ANSI.sub("", line)
        return None if text.startswith(("├──", "└──", "Streaming", "⚙", "✓", "Tip:", "📋")) else text
    rest = line[found.end() :]
    return f"[node {found['rank']}] {rest}" if found["rank"] is not None else rest


def unseen(lines: Iterable[str], shown: list[int]) -> Iterator[str]:
    """The lines of a log, read from its beginning, that were not given before. ``shown`` holds the hashes of
    those that were, and is kept up to date. Another log, as after a recovery, is given from where it differs.
    """
    for number, line in enumerate(lines):
        if number < len(shown):
            if shown[number] == hash(line):
                continue
            del shown[number:]
        shown.append(hash(line))
        yield line


class _Lines(io.TextIOBase):
    """A text stream that hands whole lines on to a queue."""

    def __init__(self, out: queue.Queue[str | BaseException | None]) -> None:
        self._out = out
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).replace("\r\n", "\n").split("\n")
        for line in lines:
            self._out.put(line.rsplit("\r", 1)[-1])
        return len(text)

    def end(self) -> None:
        if self._rest:
            self._out.put(self._rest)


def _stream(read: Callable[[io.TextIOBase], object]) -> Generator[str, None, object]:
    """Lines as a blocking SDK call writes them, then what it returns. It runs in a thread of its own, so that
    Ctrl-C is heard at once and SkyPilot draws no spinner; left early, the thread ends with this process."""
    lines: queue.Queue[str | BaseException | None] = queue.Queue()
    out = _Lines(lines)
    returned: list[object] = []

    def work() -> None:
        try:
            returned.append(read(out))
            out.end()
            lines.put(None)
        except BaseException as error:
            lines.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (item := lines.get()) is not None:
        if isinstance(item, BaseException):
            raise Refused(f"SkyPilot: {said(item if isinstance(item, Exception) else RuntimeError())}")
        yield item
    return returned[0]
