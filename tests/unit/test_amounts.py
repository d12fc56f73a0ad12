"""Durations and dollars as people write them."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import UserError
from launcher.money.amounts import format_dollars, format_duration, parse_dollars, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("36h", 129600), ("2d", 172800), ("0.2h", 720), ("13m", 780), ("90s", 90), ("1h30m", 5400),
        (" 90 min ", 5400), ("1 Day", 86400), ("1w", 604800), (".5h", 1800), ("2d 3h", 183600),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "36", "h", "-3h", "3x", "1h,", "0h", "nan", "1e3h", "h3", "999999d"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_duration(text)
    assert repr(text) in str(error.value)
    assert "36h" in str(error.value)


@pytest.mark.parametrize(
    ("text", "dollars"),
    [("400", 400), ("$400", 400), ("$1.5k", 1500), ("1,500", 1500), ("2M", 2e6), ("$ .5", 0.5)],
)
def test_dollars(text: str, dollars: float) -> None:
    assert parse_dollars(text) == pytest.approx(dollars)


@pytest.mark.parametrize("text", ["", "$", "-5", "5€", "1.5kk", "0", "1,50", "nan", "inf", "1e3"])
def test_not_dollars(text: str) -> None:
    with pytest.raises(UserError, match="dollars"):
        parse_dollars(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5400, "1h30m"), (172800, "2d"), (59.6, "1m"), (0, "0s"), (-780, "-13m"), (86399, "1d"),
        (math.inf, "never"),
    ],
)  # fmt: skip
def test_durations_are_printed_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_dollars_are_printed_to_the_cent() -> None:
    assert format_dollars(1234.5) == "$1,234.50"
    assert format_dollars(-0.256) == "-$0.26"


@given(st.floats(min_value=1, max_value=1e8))
def test_what_is_printed_can_be_read_again(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.03, abs=1)


@given(st.floats(min_value=0.01, max_value=1e11))
def test_dollars_printed_can_be_read_again(amount: float) -> None:
    assert parse_dollars(format_dollars(amount)) == pytest.approx(amount, abs=0.006)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_dollars):
        with contextlib.suppress(UserError):
            assert parse(text) > 0
