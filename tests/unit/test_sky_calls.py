"""What we make of SkyPilot's words: its log lines and the errors that it records with requests."""

from __future__ import annotations

import queue
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.backends import sky_calls, sky_logs


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("(tiny-pretrain, pid=123) step 5/20", "step 5/20"),
        ("\x1b[36m(tiny-pretrain, pid=123)\x1b[0m step 5/20", "step 5/20"),
        ("(head, rank=0, pid=12) loss 1.0", "[node 0] loss 1.0"),
        ("\x1b[36m(worker1, rank=1, pid=12, ip=10.0.0.2)\x1b[0m (a, b) c", "[node 1] (a, b) c"),
        ("a line of nobody's", "a line of nobody's"),
        ("(not a prefix) of ours", "(not a prefix) of ours"),
        ("├── Waiting for task resources on 1 node.", None),
        ("\x1b[2m└── \x1b[0mJob started. Streaming logs...", None),
    ],
)
def test_lines_of_a_jobs_log(line: str, expected: str | None) -> None:
    assert sky_logs.plain_line(line) == expected


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_a_log_taken_up_again_goes_on_where_it_broke_off(sizes: tuple[int, int, int]) -> None:
    whole, first, second = sizes
    log = [f"step {n // 3}" for n in range(whole)]
    shown: list[int] = []
    seen = [line for part in (first, second, whole) for line in sky_logs.unseen(log[:part], shown)]
    assert seen == log
    after = ["step 0", "restored", *log]
    assert list(sky_logs.unseen(after, shown))[-whole:] == log, "what a recovery began is shown"
    assert list(sky_logs.unseen(after, shown)) == []


def test_calls_of_two_threads_leave_stdout_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """The first to begin is the first to end."""
    steps = [threading.Event() for _ in range(3)]

    def first() -> None:
        with sky_calls._to_stderr():
            steps[0].set()
            assert steps[1].wait(10)
        steps[2].set()

    def second() -> None:
        assert steps[0].wait(10)
        with sky_calls._to_stderr():
            steps[1].set()
            assert steps[2].wait(10)
            print("in a call")

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("after it")
    assert capsys.readouterr() == ("after it\n", "in a call\n")


@given(st.lists(st.text("ab \r\n", max_size=6), max_size=8))
def test_lines_are_whole_however_they_arrive(pieces: list[str]) -> None:
    out: queue.Queue[str | BaseException | None] = queue.Queue()
    stream = sky_logs._Lines(out)
    text = "".join(pieces).replace("\r", "")
    for piece in pieces:
        stream.write(piece.replace("\r", ""))
    stream.end()
    lines = [out.get() for _ in range(out.qsize())]
    assert lines == text.split("\n")[:-1] + (
        [text.split("\n")[-1]] if not text.endswith("\n") and text else []
    )
