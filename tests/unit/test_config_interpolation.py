"""Interpolation in configs: variables, artifacts' fields, resolvers; and its refusals at their lines."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launcher.config import compose
from launcher.errors import Refused, UserError
from tests.unit.config_files import DEFAULT, Write, refusal


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
