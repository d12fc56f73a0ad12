"""Lineage read from the store's manifests, upwards and downwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.artifacts import registry
from launcher.artifacts.manifest import Manifest
from launcher.artifacts.store import FileStore, Store, StoreError
from launcher.artifacts.uri import ArtifactRef
from launcher.errors import Refused
from launcher.lineage import graph
from launcher.lineage.graph import Node


def make(store: Store, folder: Path, name: str, inputs: Mapping[str, str] | None = None) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text(name)
    return registry.publish(
        store,
        name=name,
        type="eval-report",
        metadata={"scores": {}},
        inputs=inputs or {},
        producer={"git_sha": "abc"},
        directory=folder / "file",
    )


def uris(node: Node) -> Any:
    """The tree as nested lists of URIs."""
    return [node.manifest.uri, *[uris(child) for child in node.children]]


@pytest.fixture
def chain(store: Store, tmp_path: Path) -> Store:
    """raw -> model v1 (also from a folder); raw, model v1 -> tuned; raw -> model v2, and no further."""
    make(store, tmp_path / "a", "raw")
    make(store, tmp_path / "a", "model", {"data": "art://raw:v1", "seed": "file:///tmp/seed"})
    make(store, tmp_path / "a", "model", {"data": "art://raw:v1"})
    make(store, tmp_path / "a", "tuned", {"data": "art://raw:v1", "model": "art://model:v1"})
    return store


def test_up(chain: Store) -> None:
    tuned = graph.up(chain, "art://tuned")
    assert uris(tuned) == [
        "art://tuned:v1",
        ["art://raw:v1"],
        ["art://model:v1", ["art://raw:v1"]],
    ]
    assert tuned.children[1].others == ("file:///tmp/seed",)
    assert uris(graph.up(chain, ArtifactRef("raw"))) == ["art://raw:v1"]


def test_down(chain: Store) -> None:
    assert uris(graph.down(chain, "art://raw:v1")) == [
        "art://raw:v1",
        ["art://model:v1", ["art://tuned:v1"]],
        ["art://model:v2"],
        ["art://tuned:v1"],
    ]
    assert uris(graph.down(chain, "tuned")) == ["art://tuned:v1"]


def test_json_says_it_all(chain: Store) -> None:
    found = json.loads(json.dumps(graph.to_json(graph.up(chain, "art://model:v1"))))
    assert found["uri"] == "art://model:v1"
    assert found["producer"]["git_sha"] == "abc"
    assert found["inputs"] == {"data": "art://raw:v1", "seed": "file:///tmp/seed"}
    assert found["others"] == ["file:///tmp/seed"]
    assert [child["uri"] for child in found["children"]] == ["art://raw:v1"]


def test_what_is_gone_and_what_is_damaged(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    make(store, tmp_path / "a", "raw")
    make(store, tmp_path / "a", "model", {"data": "art://raw:v1", "more": "art://never:v3"})
    assert graph.up(store, "model").others == ("art://never:v3",)
    store.put_bytes("artifacts/raw/v1.json", b"{")
    with pytest.raises(StoreError, match=r"raw/v1\.json is damaged"):
        graph.up(store, "model")
    with pytest.raises(Refused, match=r"no artifact 'mode' .*did you mean 'model'") as caught:
        graph.down(store, "mode")
    assert not isinstance(caught.value, StoreError)


@settings(max_examples=25)
@given(st.data())
def test_down_is_up_seen_from_the_other_end(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """In any history: B is above A's tree exactly when A is below B's."""
    folder = tmp_path_factory.mktemp("graph")
    store = FileStore(folder / "store")
    made: list[Manifest] = []
    for number in range(data.draw(st.integers(2, 5))):
        sources = data.draw(st.lists(st.sampled_from(made), unique_by=id, max_size=3)) if made else []
        inputs = {f"i{n}": source.uri for n, source in enumerate(sources)}
        made.append(make(store, folder / "files", f"n{number % 3}", inputs))

    def everything(node: Node) -> set[str]:
        return {node.manifest.uri}.union(*[everything(child) for child in node.children])

    above = {item.uri: everything(graph.up(store, item.uri)) for item in made}
    below = {item.uri: everything(graph.down(store, item.uri)) for item in made}
    for one in above:
        for other in above:
            assert (other in above[one]) == (one in below[other])
