"""Composing configs: files, inheritance and overrides, and where each value is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.config import compose, dump_yaml
from tests.unit.config_files import DEFAULT, Write, refusal

# Files.


def test_values_origins_and_files(folder: Path, write: Write) -> None:
    path = write("default.yaml", DEFAULT)
    done = compose(folder, "default", ["train.iters=5", "+note=hi"])
    assert done.values["train"] == {"lr": 1e-4, "iters": 5, "betas": [0.9, 0.95], "peft": None}
    assert done.files == (path,)
    assert done.origin == {
        "seed": "config/default.yaml:1",
        "train.lr": "config/default.yaml:3",
        "train.iters": "override 'train.iters=5'",
        "train.betas": "config/default.yaml:5",
        "train.peft": "config/default.yaml:6",
        "layers": "config/default.yaml:7",
        "data.path": "config/default.yaml:11",
        "note": "override '+note=hi'",
    }


def test_the_three_formats_are_one(folder: Path, write: Write) -> None:
    write("a.yaml", "x: 1\nt:\n  lr: 1e-4\n  when: 2024-01-02\n  l: [1, {y: 2}]\n")
    write("b.toml", "x = 1\n[t]\nlr = 1e-4\nwhen = 2024-01-02\nl = [1, {y = 2}]\n")
    write("c.json", '{"x": 1,\n "t": {\n\t"lr": 1e-4,\n"when": "2024-01-02", "l":\n[1, {"y": 2}]}}')
    done = [compose(folder, name) for name in ("a", "b", "c")]
    assert done[0].values == done[1].values == done[2].values
    assert done[0].values == {"x": 1, "t": {"lr": 1e-4, "when": "2024-01-02", "l": [1, {"y": 2}]}}
    assert done[0].origin["t.when"] == "config/a.yaml:4"
    assert done[1].origin["t.when"] == "config/b.toml:4"
    assert done[2].origin["t.lr"] == "config/c.json:3"
    assert done[2].origin["t.l"] == "config/c.json:4"


def test_a_name_may_be_a_path(
    folder: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = write("sub/x.yaml", "a: 1\n")
    outside = tmp_path / "mine.yaml"
    outside.write_text("a: 2\n")
    monkeypatch.chdir(tmp_path)
    assert compose(folder, "sub/x.yaml").files == (inside,)
    assert compose(folder, "mine.yaml").values == {"a": 2}
    assert compose(folder, str(outside)).origin == {"a": "mine.yaml:1"}
    elsewhere = tmp_path.parent / f"{tmp_path.name}-other.yaml"
    elsewhere.write_text("a: 3\n")
    assert compose(folder, str(elsewhere)).origin == {"a": f"{elsewhere}:1"}


def test_names_that_are_not_there(folder: Path, write: Write) -> None:
    write("default.yaml", "")
    write("tiny.toml", "")
    error = refusal(folder, name="tinny")
    assert error.message == f"no config 'tinny' in {folder}; did you mean 'tiny'?"
    assert error.hint == "there are: default, tiny; a path to any other file works too"
    assert refusal(folder, name="tinny.toml").message.endswith("did you mean 'tiny.toml'?")
    write("tiny.json", "{}")
    assert "ambiguous" in refusal(folder, name="tiny").message


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("default.yaml", "a: 1\nb: [\n", 3, "not valid YAML"),
        ("default.yaml", "a: 1\nb:\n  c: 1\n  c: 2\n", 4, "key 'b.c' stands here and on line 3"),
        ("default.yaml", "- a\n", 1, "expected a mapping"),
        ("default.yaml", "a: 1\nb:\n  1: x\n", 3, "the key '1' means 1, not text: write it in quotes"),
        ("default.yaml", "a: 1\non: x\n", 2, "the key 'on' means True, not text"),
        ("default.yaml", "a: 1\nb: !!binary aGk=\n", 2, "b: a config cannot hold bytes"),
        ("default.yaml", "a: &a\n  b: *a\n", 1, "refers to itself"),
        ("default.toml", "a = 1\na = 2\n", 2, "not valid TOML"),
        ("default.json", '{"a": 1,\n"b": }', 2, "not valid JSON: Expecting value"),
        (
            "default.json",
            '{"a": 1,\n"b": {"c": "x:\\"y", "d": [{}],\n"c": 2}}',
            3,
            "key 'b.c' stands here and on",
        ),
        ("default.json", "[1]", 1, "expected a mapping"),
        ("default.yaml", "a: 1\ndefaults: {b: 1}\n", 2, "defaults must be the name of a config"),
        (
            "default.yaml",
            "defaults:\n  - base\n  - optimizer: adam\n",
            1,
            "defaults must be the name of a config",
        ),
        (
            "default.yaml",
            "defaults:\n  - base\n  - bsae\n",
            3,
            "no config 'bsae' in {folder}; did you mean 'base'?",
        ),
        ("default.yaml", "defaults: ../x\n", 1, "no config 'x' in"),
    ],
)
def test_a_wrong_file_is_refused_at_its_line(
    folder: Path, write: Write, name: str, text: str, line: int, message: str
) -> None:
    write("base.yaml", "x: 1\n")
    path = write(name, text)
    error = refusal(folder)
    assert message.format(folder=folder) in error.message
    assert error.where == f"{path}:{line}"


def test_inheritance(folder: Path, write: Write) -> None:
    base = write("base.yaml", "a: 1\nt: {x: 1, y: 1}\nl: [1, 2]\nm: {z: 1}\n")
    more = write("more.toml", 'defaults = "base"\n[t]\ny = 2\n')
    top = write("default.yaml", "defaults: [base, more]\nt: {z: 3}\nl: [3]\nm: null\n")
    done = compose(folder, "default")
    assert done.values == {"a": 1, "t": {"x": 1, "y": 2, "z": 3}, "l": [3], "m": None}
    assert done.files == (base, more, top)
    assert done.origin["t.x"] == "config/base.yaml:2"
    assert done.origin["t.y"] == "config/more.toml:3"
    assert done.origin["l"] == "config/default.yaml:3"
    assert done.origin["m"] == "config/default.yaml:4"


def test_self_says_when_the_own_keys_are_laid(folder: Path, write: Write) -> None:
    write("base.yaml", "a: base\nb: base\n")
    write("default.yaml", "defaults: [_self_, base]\na: own\nc: own\n")
    assert compose(folder, "default").values == {"a": "base", "b": "base", "c": "own"}


def test_bases_are_found_from_the_file_that_names_them(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("common/base.yaml", "defaults: root\nb: 1\n")
    write("common/root.yaml", "a: 1\n")
    write("root.yaml", "a: 2\n")
    write("default.yaml", "defaults: common/base\n")
    monkeypatch.chdir(folder)
    assert compose(folder, "default").values == {"a": 1, "b": 1}


def test_a_circle_of_defaults(folder: Path, write: Write) -> None:
    write("a.yaml", "defaults: b\n")
    write("b.yaml", "x: 1\ndefaults:\n  - c\n")
    path = write("c.yaml", "\ndefaults: a\n")
    error = refusal(folder, name="a")
    assert error.message == "defaults goes in a circle: a -> b -> c -> a"
    assert error.where == f"{path}:2"


def test_aliases_of_one_table_change_apart(folder: Path, write: Write) -> None:
    write("default.yaml", "a: &a\n  x: 1\nb: *a\nc:\n  <<: *a\n  y: 2\n")
    done = compose(folder, "default", ["a.x=5"])
    assert done.values == {"a": {"x": 5}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    assert done.origin["c.x"] == "config/default.yaml:4"
    assert "&" not in dump_yaml(done.values)


# Overrides.


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["train.lr=3e-5"], "train.lr", 3e-5),
        (["train.betas=[1,2]"], "train.betas", [1, 2]),
        (["train.betas.1=3"], "train.betas", [0.9, 3]),
        (["layers.1.size=3"], "layers", [{"size": 8}, {"size": 3}]),
        (["layers[0]={size: 1}"], "layers", [{"size": 1}, {"size": 16}]),
        (["+layers.2={size: 4}"], "layers", [{"size": 8}, {"size": 16}, {"size": 4}]),
        (["~layers.0"], "layers", [{"size": 16}]),
        (["+train.peft.dim=8"], "train.peft", {"dim": 8}),
        (["train={lr: 1, iters: 2}"], "train", {"lr": 1, "iters": 2, "betas": [0.9, 0.95], "peft": None}),
        (["+new.deep.key=1"], "new", {"deep": {"key": 1}}),
        (["+train={extra: 1}"], "train.extra", 1),
        (["++seed=2", "++other=3"], "seed", 2),
        (["~train.lr", "+train.lr=7"], "train.lr", 7),
        (["seed=5", "seed=6"], "seed", 6),
        (["train=null"], "train", None),
        (["seed='007'"], "seed", "007"),
        (["seed=${train.iters}"], "seed", 100),
        (["+msg='lr is ${train.lr}'"], "msg", "lr is 0.0001"),
        (["extra.a.b=1"], "extra", {"a": {"b": 1}}),
        (["run.data=art://x:v2"], "run.data", "art://x:v2"),
        (["run.env={A: 1, B: x}"], "run.env", {"A": 1, "B": "x"}),
    ],
)
def test_overrides(folder: Path, write: Write, overrides: list[str], key: str, value: Any) -> None:
    write("default.yaml", DEFAULT)
    done = compose(folder, "default", overrides, known=["extra.*", "run.data", "run.env.*"])
    node: Any = done.values
    for part in key.split("."):
        node = node[part]
    assert node == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.itres=5", "unknown key 'train.itres'; did you mean 'train.iters'?"),
        ("itres=5", "unknown key 'itres'; did you mean 'train.iters'?"),
        ("train={itres: 5}", "unknown key 'train.itres'; did you mean 'train.iters'?"),
        ("run.daat=x", "unknown key 'run.daat'; did you mean 'run.data'?"),
        ("train.lr.x=5", "unknown key 'train.lr.x'; did you mean 'train.lr'?"),
        ("+train.lr=5", "train.lr is already 0.0001"),
        ("+train.lr.x=5", "train.lr is 0.0001, not a section"),
        ("~train.itres", "there is no key 'train.itres' to remove; did you mean 'train.iters'?"),
        ("~train.iters=5", "train.iters is 100, not 5: nothing is removed"),
        ("layers.2.size=1", "unknown key 'layers.2.size'"),
        ("layers.2=1", "layers has 2 items: there is no '2'"),
        ("+layers.9=1", "layers is a list of 2: '9' is not the index of an item"),
        ("layers.one=1", "layers has 2 items: there is no 'one'"),
    ],
)
def test_overrides_that_are_refused(folder: Path, write: Write, override: str, message: str) -> None:
    write("default.yaml", DEFAULT)
    error = refusal(folder, override, known=["run.data"])
    assert error.message.startswith(f"override {override!r}: {message}")
    assert error.where is None
    if "unknown" in message:
        assert error.hint is not None
        assert "+" in error.hint


def test_the_run_section_of_a_file_is_checked_against_what_is_known(folder: Path, write: Write) -> None:
    path = write("default.yaml", "a: 1\nrun:\n  data: art://x\n  env: {A: 1}\n  daat: art://x\n")
    error = refusal(folder, known=["run.data", "run.env.*"])
    assert error.message == "unknown key 'run.daat'; did you mean 'run.data'?"
    assert error.where == f"{path}:5"
    assert compose(folder, "default").values["run"]["daat"] == "art://x"
    write("default.yaml", "run: x\n")
    assert refusal(folder, known=["run.data"]).message == "run must be a section, not 'x'"


def test_an_override_inside_a_list_shows_in_its_origin(folder: Path, write: Write) -> None:
    write("default.yaml", DEFAULT)
    done = compose(folder, "default", ["layers.0.size=1", "layers.1.size=2"])
    assert done.origin["layers"] == "override 'layers.1.size=2'"
    done = compose(folder, "default", ["layers.0.size=1", "layers=[1]"])
    assert done.origin["layers"] == "override 'layers=[1]'"
