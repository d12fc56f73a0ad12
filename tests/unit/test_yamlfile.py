"""The YAML reader: lines of keys, equal keys, and numbers as people mean them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import yamlfile
from launcher.config import dump_yaml
from launcher.errors import UserError


def test_lines_of_nested_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb:\n  c:\n    - x\n    - d: 2\n")
    file = yamlfile.read(path)
    assert file.where("b", "c", "1", "d") == f"{path}:5"
    assert file.where("b", "missing") == f"{path}:2"
    assert file.where("missing") == f"{path}:1"


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert yamlfile.read(path).values == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e-3", -2.5e-3),
        (".5", 0.5),
        ("1.0", 1.0),
        ("1.5e3", 1500.0),
        ("7", 7),
    ],
)
def test_numbers_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"x: {text}\n")
    read = yamlfile.read(path).values["x"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["1.2.3", "e5", "12e", "v1", "1-2", "."])
def test_what_only_looks_like_a_number_stays_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"x: {text}\n")
    assert yamlfile.read(path).values["x"] == text


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        yamlfile.read(path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcxyz", min_size=1), plain, max_size=5))
def test_reads_what_we_write(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    assert yamlfile.read(path).values == values
