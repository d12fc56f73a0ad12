"""Composing configs: files, inheritance, overrides, interpolation, and where each value is from."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf._yaml import get_yaml_loader

from launcher import config
from launcher.config import Composed, compose, dump_yaml, flatten, rows
from launcher.errors import Refused, UserError

Write = Callable[[str, str], Path]

DEFAULT = """\
seed: 1
train:
  lr: 1e-4
  iters: 100
  betas: [0.9, 0.95]
  peft: null
layers:
  - size: 8
  - size: 16
data:
  path: ${art:data,path}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stage's config folder."""
    (tmp_path / "config").mkdir()
    return tmp_path / "config"


@pytest.fixture
def write(folder: Path) -> Write:
    def put(name: str, text: str) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return put


def refusal(folder: Path, *overrides: str, name: str = "default", **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        compose(folder, name, overrides, **options)
    return caught.value


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


# Interpolation.


def test_interpolation(folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NS_HERE", "there")
    monkeypatch.delenv("NS_ABSENT", raising=False)
    write(
        "default.yaml",
        """\
model: {hidden: 8, heads: 2}
copy: ${model}
hidden: ${model.hidden}
text: h=${model.hidden}
env: ${oc.env:NS_HERE}
env_default: ${oc.env:NS_ABSENT,/tmp}
chain: ${hidden}
list: ["${.1}", "${model.heads}", {deep: "${hidden}"}]
literal: \\${model}
save: ${node:checkpoints}/x
out: ${node:output}
inputs: ${node:inputs}
work: ${node:work}
""",
    )
    done = compose(folder, "default")
    assert done.values == {
        "model": {"hidden": 8, "heads": 2},
        "copy": {"hidden": 8, "heads": 2},
        "hidden": 8,
        "text": "h=8",
        "env": "there",
        "env_default": "/tmp",
        "chain": 8,
        "list": [2, 2, {"deep": 8}],
        "literal": "${model}",
        "save": "$NEMO_SKY_CHECKPOINTS/x",
        "out": "$NEMO_SKY_OUTPUT",
        "inputs": "$NEMO_SKY_INPUTS",
        "work": "$NEMO_SKY_WORK",
    }
    assert done.origin["copy.heads"] == "config/default.yaml:2"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: ${oc.env:NS_ABSENT}\n", 2, "b: environment variable NS_ABSENT is not set"),
        ("c: ${b}\na: 1\nb: x/${oc.env:NS_ABSENT}\n", 3, "b: environment variable NS_ABSENT is not set"),
        ("c: ['${oc.env:NS_ABSENT}']\nd: ${c}\n", 1, "c.0: environment variable NS_ABSENT is not set"),
        (
            "model: {size: 1}\nb:\n  - ${model.sise}\n",
            3,
            "b.0: '${model.sise}': there is no key 'model.sise'; did you",
        ),
        ("a: ${nod:work}\n", 1, "a: '${nod:work}': nothing is called 'nod'; did you mean 'node'?"),
        ("a: ${node:chekpoints}\n", 1, "a: the node has no folder 'chekpoints'; did you mean 'checkpoints'?"),
        ("a: ${node:x}\n", 1, "a: the node has no folder 'x'; there are: checkpoints, output, inputs, work"),
        ("a: ${b}\nb: ${a}\n", 1, "a: '${b}' refers to itself"),
        ("a: 1\nb: ['x', '${a']\n", 2, "b.1: '${a' is not a well-formed interpolation"),
        ("a: 1\nb: ${oc.select:}\n", 2, "b: "),
        ("a: 1\nb:\n  c: ???\n", 3, "b.c has no value (???)"),
        ("a: 1\nb: ${oc.decode:'{'}\n", 2, "b: "),
        ("a: ${art:}\n", 1, "a: "),
        ("a: ${art:x,y,z}\n", 1, "a: "),
    ],
)
def test_interpolation_that_cannot_be_is_refused_at_its_line(
    folder: Path, write: Write, text: str, line: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NS_ABSENT", raising=False)
    path = write("default.yaml", text)
    error = refusal(folder, resolver=absent)
    assert error.message.startswith(message)
    assert "\n" not in error.message
    assert error.where == f"{path}:{line}"


def absent(name: str, field: str) -> object:
    raise Refused(f"there is no input {name!r}", hint="declare it")


def test_an_interpolation_of_an_override_names_the_override(folder: Path, write: Write) -> None:
    write("default.yaml", DEFAULT)
    error = refusal(folder, "seed=${oc.env:NS_ABSENT}")
    assert error.message.startswith(
        "seed (override 'seed=${oc.env:NS_ABSENT}'): environment variable NS_ABSENT"
    )
    assert error.where is None


def test_art_is_asked_of_the_resolver(folder: Path, write: Write) -> None:
    write(
        "default.yaml",
        "a: ${art:data}\nb: ${art:data,path}/blend.json\nc: ${art:data, pack_size}\nd: ${art:data,splits}\n",
    )
    asked = []

    def answer(name: str, field: str) -> object:
        asked.append((name, field))
        return {"path": "$NEMO_SKY_INPUTS/data", "pack_size": 4096, "splits": {"train": [1, 2]}}[field]

    done = compose(folder, "default", resolver=answer)
    assert done.values == {
        "a": "$NEMO_SKY_INPUTS/data",
        "b": "$NEMO_SKY_INPUTS/data/blend.json",
        "c": 4096,
        "d": {"train": [1, 2]},
    }
    assert asked == [("data", "path"), ("data", "path"), ("data", "pack_size"), ("data", "splits")]
    assert done.origin["d.train"] == "config/default.yaml:4"


def test_art_without_a_resolver_stays_as_it_is(folder: Path, write: Write) -> None:
    write("default.yaml", "a: x/${art:data,path}/y\nb: ${a}\nc: ${art:data}\n")
    values = compose(folder, "default").values
    assert values == {"a": "x/${art:data,path}/y", "b": "x/${art:data,path}/y", "c": "${art:data,path}"}


def test_what_the_resolver_raises_keeps_its_kind_and_gets_a_place(folder: Path, write: Write) -> None:
    path = write("default.yaml", "a: 1\nb:\n  c: ${art:dta}\n")
    error = refusal(folder, resolver=absent)
    assert type(error) is Refused
    assert (error.message, error.where, error.hint) == (
        "b.c: there is no input 'dta'",
        f"{path}:3",
        "declare it",
    )


def test_resolvers_do_not_outlive_a_composition(folder: Path, write: Write) -> None:
    write("default.yaml", "a: ${art:data}\nb: ${node:work}\n")
    OmegaConf.register_resolver("art", lambda name: f"theirs {name}", annotation_validation="off")
    try:
        for answer in ("one", "two"):
            done = compose(folder, "default", resolver=lambda name, field, said=answer: said)  # type: ignore[misc]
            assert done.values["a"] == answer
        with pytest.raises(UserError):
            compose(folder, "default", resolver=absent)
        assert OmegaConf.create({"a": "${art:x}"}).a == "theirs x"
        assert not OmegaConf.has_resolver("node")
    finally:
        OmegaConf.clear_resolver("art")


def test_compositions_in_threads_do_not_mix(folder: Path, write: Write) -> None:
    write("default.yaml", "a: ${art:data}\nb: ${a}${a}${a}\n")
    wrong = []

    def work(answer: str) -> None:
        def slow(name: str, field: str) -> object:
            time.sleep(0.001)  # lets the others in, if anything would
            return answer

        for _ in range(5):
            done = compose(folder, "default", resolver=slow)
            if done.values["b"] != answer * 3:
                wrong.append(done.values)

    threads = [threading.Thread(target=work, args=(f"answer {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What becomes of the values.


def test_flatten_and_rows() -> None:
    values = {"a": {"b": 1e-5, "c": None, "d": {}, "e": [1, {"f": "ü"}]}, "t": True, "s": "x y"}
    flat = {"a.b": "1e-05", "a.c": "null", "a.d": "{}", "a.e": '[1, {"f": "ü"}]', "t": "true", "s": "x y"}
    assert flatten(values) == flat
    composed = Composed(values, dict.fromkeys(flat, "here"), ())
    assert rows(composed) == [(key, value, "here") for key, value in flat.items()]


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["1e-4", "1E5", "007", "0o17", "1_000", "yes", "~", "null", "2024-01-01", "1:30", "${a}", "=", ""]
    ),
    st.text(st.sampled_from("0123456789eE+-._:xo"), max_size=6),
)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=10,
)


@given(st.dictionaries(TEXTS, PLAIN, max_size=4))
def test_yaml_is_read_back_by_every_reader(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    text = dump_yaml(values)
    assert dump_yaml(values) == text
    assert yaml.safe_load(text) == values
    path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_text(text, encoding="utf-8")
    assert typed(config.files.read(path).values) == typed(values)
    assert typed(yaml.load(text, Loader=get_yaml_loader())) == typed(values)


def typed(value: Any) -> Any:
    """Such that 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value).__name__, value


def test_yaml_is_the_same_whatever_shares_its_values() -> None:
    shared = {"x": [1]}
    assert dump_yaml({"b": shared, "a": shared}) == "b:\n  x:\n  - 1\na:\n  x:\n  - 1\n"
    assert dump_yaml({"a": math.inf, "b": "1e-4", "c": 1e-4}) == "a: .inf\nb: '1e-4'\nc: 0.0001\n"


KEYS = st.text(st.sampled_from("abcd"), min_size=1, max_size=2)
TREES = st.recursive(
    st.integers(0, 9),
    lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(TREES, TREES)
def test_layers_merge_as_omegaconf_merges(tmp_path_factory: Any, base: Any, top: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "base.yaml").write_text(dump_yaml(base))
    (folder / "top.yaml").write_text(dump_yaml({"defaults": "base", **top}))
    done = compose(folder, "top")
    assert done.values == OmegaConf.to_container(OmegaConf.merge(base, top))
    lines = {"base": (folder / "base.yaml").read_text().splitlines()}
    lines["top"] = (folder / "top.yaml").read_text().splitlines()
    for key, value, origin in rows(done):
        file, _, line = origin.rpartition(":")
        written = lines[Path(file).stem][int(line) - 1]
        assert written.strip() == f"{key.rpartition('.')[2]}: {value}"


def test_importing_is_cheap() -> None:
    code = (
        "import sys, launcher.config, launcher.runspec\n"
        "heavy = {'omegaconf', 'mlflow', 'boto3', 'sky', 'torch', 'ray', 'typer'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_manifest_that_data_preparation_wrote(folder: Path, write: Write, tmp_path: Path) -> None:
    write("made/manifest.json", '{"digest": "abc", "rows": 3}')
    made = folder / "made"
    path = write("default.yaml", f"folder: {made}\na: ${{manifest:${{folder}},digest}}\n")
    assert compose(folder, "default").values["a"] == "abc"
    error = refusal(folder, "a='${manifest:${folder},digst}'")
    assert "has no key 'digst'; did you mean 'digest'?" in error.message
    error = refusal(folder, f"folder={tmp_path}/nowhere")
    assert (error.where, "nowhere/manifest.json" in error.message) == (f"{path}:2", True)
    write("made/manifest.json", "{")
    assert "is not JSON" in refusal(folder).message


def test_variables_that_have_another_value_on_the_node(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PWD", "HOME", "MY_TOKEN"):
        monkeypatch.setenv(name, "/here")
    monkeypatch.delenv("UNSET_HERE", raising=False)
    write(
        "default.yaml",
        "a: ${oc.env:PWD}/x\nb: ${oc.env:HOME,/root}\nc: ${oc.env:HOME}/y\nd: ${oc.env:MY_TOKEN,''}\n"
        "e: ${oc.env:UNSET_HERE}\nf: ???\ng: ${f}\nh: ${oc.env:UNSET_HERE,}\ni: ${mul:${e},2}\n",
    )
    there = {"PWD": "$NEMO_SKY_CODE", "HOME": None}
    written = {"e": "${oc.env:UNSET_HERE}", "f": "???", "g": "${f}", "i": "${mul:${oc.env:UNSET_HERE},2}"}
    assert compose(folder, "default", node_env=there, draft=True).values == {
        "a": "$NEMO_SKY_CODE/x",
        "b": "/root",
        "c": "${oc.env:HOME}/y",
        "d": "${oc.env:MY_TOKEN,''}",
        "h": "",
        **written,
    }
    values = compose(folder, "default", ["d=1"], draft=True).values
    assert (values["a"], values["b"], values["c"]) == ("/here/x", "/here", "/here/y")
    assert {key: values[key] for key in written} == written
    assert "f has no value" in refusal(folder, "d=1").message
