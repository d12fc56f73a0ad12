"""What becomes of a config's values: flat rows, YAML, layers; on any values."""

from __future__ import annotations

import math
import subprocess
import sys
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
from tests.unit.config_files import Write, refusal


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
