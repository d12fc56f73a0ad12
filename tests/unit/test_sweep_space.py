"""The space file: what it may say, and where it says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config import compose, dump_yaml, parse_override
from launcher.errors import UserError
from launcher.sweep import space
from launcher.sweep.space import Choices, Range, Resource

GOOD = """\
metric: accuracy
direction: maximize
seed: 3
resource: {key: train.steps, min: 2, reduction: 4}
space:
  train.lr: {low: 1e-4, high: 1e-1, log: true}
  model.layers: {low: 1, high: 8, int}
  train.decay: {choices: [0.0, 0.1, null]}
"""
CONFIG = "train: {lr: 0.01, decay: 0.1, steps: 50}\nmodel: {layers: 2}\n"


def read(tmp_path: Path, text: str) -> space.Space:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return space.read(path)


def check(tmp_path: Path, text: str, *overrides: str) -> None:
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config" / "default.yaml").write_text(CONFIG)
    composed = compose(tmp_path / "config", "default", overrides)
    space.check(read(tmp_path, text), composed, ("run.env.X",), overrides)


def test_everything_that_a_space_may_say(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert found.keys == {
        "train.lr": Range(1e-4, 1e-1, log=True),
        "model.layers": Range(1, 8, whole=True),
        "train.decay": Choices((0.0, 0.1, None)),
    }
    assert (found.metric, found.direction, found.seed) == ("accuracy", "maximize", 3)
    assert found.resource == Resource("train.steps", 2, None, 4)
    check(tmp_path, GOOD)


def test_the_least_is_one_key(tmp_path: Path) -> None:
    found = read(tmp_path, "space: {a: {choices: [1]}}")
    assert (found.metric, found.direction, found.resource) == ("valid_loss", "minimize", None)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("metric: x\n", 1, "needs keys to vary"),
        ("spaec: {}\n", 1, "unknown key 'spaec'; did you mean 'space'"),
        ("space:\n  a: {low: 1, hihg: 2}\n", 2, "unknown key 'a.hihg'; did you mean 'high'"),
        ("space:\n  a:\n    low: 1\n", 2, "a needs high, or choices"),
        ("space:\n  a:\n    low: 3\n    high: 2\n", 3, "not below high"),
        ("space:\n  a: {low: 1, high: two}\n", 2, "a.high must be a number, not 'two'"),
        ("space:\n  a: {low: true, high: 2}\n", 2, "a.low must be a number"),
        ("space:\n  a: {low: 0, high: .inf}\n", 2, "a.high must be a number"),
        ("space:\n  a:\n    low: 0\n    high: 2\n    log: true\n", 3, "above 0"),
        ("space:\n  a:\n    low: 1\n    high: 2.5\n    int: true\n", 4, "a.high must be a whole number"),
        ("space:\n  a: {low: 1, high: 2, log: yes!}\n", 2, "a.log must be true or false"),
        ("space:\n  a: 5\n", 2, "a must be a range or choices, not 5"),
        ("space:\n  a: {choices: []}\n", 2, "must be a list of values"),
        ("space:\n  a:\n    choices:\n      - 1\n      - [2]\n", 5, "no number, text"),
        ("space:\n  a:\n    choices:\n      - 1\n      - true\n", 5, "True twice"),
        ("space:\n  a: {choices: [1], low: 2}\n", 2, "a has choices and low"),
        ("space:\n  a: {choices: ['${x']}\n", 2, "never closed"),
        ("space:\n  1: {choices: [1]}\n", 1, "is not text"),
        ("space:\n  'a=b': {choices: [1]}\n", 2, "is not a key"),
        ("space:\n  'a..b': {choices: [1]}\n", 2, "is not a key"),
        ("direction: minimise\nspace: {a: {choices: [1]}}\n", 1, "did you mean 'minimize'"),
        ("metric: 3\nspace: {a: {choices: [1]}}\n", 1, "metric must be the name"),
        ("seed: -1\nspace: {a: {choices: [1]}}\n", 1, "seed must be a whole number"),
        ("space: {a: {choices: [1]}}\nresource: {min: 2}\n", 2, "resource needs the key"),
        ("space: {a: {choices: [1]}}\nresource: {key: b}\n", 2, "resource needs min"),
        ("space: {a: {choices: [1]}}\nresource: {key: b, min: 4, max: 4}\n", 2, "not above min"),
        ("space: {a: {choices: [1]}}\nresource: {key: b, min: 4, reduction: 1}\n", 2, "from 2, not 1"),
        ("space: {a: {choices: [1]}}\nresource: 4\n", 2, "resource must be a table"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, text)
    assert says in refused.value.message
    assert refused.value.where == f"{tmp_path}/space.yaml:{line}"


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("space:\n  train.lrr: {low: 1, high: 2}\n", (), "unknown key 'train.lrr'; did you mean 'train.lr'"),
        ("space:\n  train: {low: 1, high: 2}\n", (), "train is a section"),
        ("space:\n  train.lr: {low: 1, high: 2}\n", ("train.lr=3",), "the command line sets it: train.lr=3"),
        ("space:\n  model.layers: {low: 1, high: 2}\n", (), "a whole number, and the range is of any"),
        ("resource: {key: train.lr, min: 1}\nspace:\n  train.decay: {low: 1, high: 2}\n", (), "no number of"),
        ("resource: {key: train.lr, min: 1}\nspace:\n  train.lr: {low: 1, high: 2}\n", (), "space, too"),
    ],
)
def test_keys_are_checked_against_the_config(
    tmp_path: Path, text: str, overrides: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UserError) as refused:
        check(tmp_path, text, *overrides)
    assert says in refused.value.message
    assert refused.value.where
    assert refused.value.where.startswith(f"{tmp_path}/space.yaml:")


def test_a_key_that_is_added_on_the_command_line_may_vary(tmp_path: Path) -> None:
    check(tmp_path, "space: {run.env.X: {choices: [a, b]}}")
    with pytest.raises(UserError, match=r"unknown key 'train\.extra'"):
        check(tmp_path, "space: {train.extra: {choices: [1, 2]}}")


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"]), max_size=20)
)


@given(plain)
def test_an_override_sets_exactly_the_value(value: space.Value) -> None:
    read_back = parse_override(space.override("a.b", value))
    assert read_back.key == "a.b"
    assert read_back.value == value
    assert type(read_back.value) is type(value)


numbers = st.floats(-1e9, 1e9, allow_nan=False) | st.integers(-(10**9), 10**9)


@given(numbers, numbers, st.booleans(), st.booleans())
def test_a_range_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, low: Any, high: Any, log: bool, whole: bool
) -> None:
    path = tmp_path_factory.mktemp("space") / "s.yaml"
    path.write_text(dump_yaml({"space": {"a": {"low": low, "high": high, "log": log, "int": whole}}}))
    sound = low < high and (low > 0 or not log) and (not whole or type(low) is type(high) is int)
    if sound:
        assert space.read(path).keys["a"] == Range(low, high, log, whole)
        return
    with pytest.raises(UserError) as refused:
        space.read(path)
    assert str(refused.value.where).startswith(f"{path}:")
