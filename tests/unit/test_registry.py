"""Publishing, resolving and fetching artifacts, on both stores, through kills and races."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.artifacts import checkpoints, registry, types
from launcher.artifacts.fields import resolve_art_fields
from launcher.artifacts.manifest import Manifest
from launcher.artifacts.store import FileStore, Store, StoreError
from launcher.artifacts.uri import ArtifactRef, parse_ref
from launcher.errors import Refused, UserError

if TYPE_CHECKING:
    from tests.unit.conftest import S3Server

ROOT = Path(__file__).parents[2]
DATA = {"total_tokens": 12, "total_sequences": 3}


def publish(store: Store, directory: Path | None, name: str = "tiny-data", **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "name": name,
        "type": "pretrain-data",
        "metadata": DATA,
        "inputs": {},
        "producer": {},
        "directory": directory,
    }
    return registry.publish(store, **{**arguments, **changes})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with files below files, an empty file and an empty folder."""
    folder = tmp_path / "data"
    (folder / "shards" / "deep").mkdir(parents=True)
    (folder / "nothing here").mkdir()
    (folder / "blend.json").write_text("{}")
    (folder / "shards" / "deep" / "0.bin").write_bytes(os.urandom(100_000))
    (folder / "shards" / "ümlaut 1.idx").touch()
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_what_is_published_is_fetched(store: Store, data: Path, tmp_path: Path) -> None:
    sent: list[tuple[int, int]] = []
    got: list[tuple[int, int]] = []
    made = publish(
        store,
        data,
        inputs={"raw": "art://raw:v2"},
        producer={"git_sha": "abc"},
        progress=lambda done, whole: sent.append((done, whole)),
    )
    assert (made.uri, made.bytes, made.type) == ("art://tiny-data:v1", 100_002, "pretrain-data")
    assert made.inputs == {"raw": "art://raw:v2"}
    assert made.producer["git_sha"] == "abc"
    assert made.metadata["total_tokens"] == 12
    read = registry.resolve(store, parse_ref("art://tiny-data:v1"))
    assert read == made
    registry.fetch(store, read, tmp_path / "out", lambda done, whole: got.append((done, whole)))
    assert tree(tmp_path / "out") == tree(data)
    assert sent[-1] == got[-1] == (100_002, 100_002)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_file_is_an_artifact_too(store: Store, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    made = registry.import_path(store, tmp_path / "report.json", "report", "eval-report", {"scores": {}})
    assert made.producer["imported_from"] == str(tmp_path / "report.json")
    registry.fetch(store, made, tmp_path / "out")
    assert tree(tmp_path / "out") == {"report.json": b"{}"}


def test_same_bytes_are_not_uploaded_twice(store: Store, data: Path) -> None:
    first = publish(store, data)
    objects = store.list("artifacts/tiny-data/data")
    second = publish(store, data)
    assert (second.version, second.base, second.digest) == (2, first.base, first.digest)
    assert store.list("artifacts/tiny-data/data") == objects
    (data / "blend.json").write_text("[]")
    third = publish(store, data)
    assert third.version == 3
    assert third.base != first.base


def test_an_attempt_publishes_once(store: Store, data: Path) -> None:
    first = publish(store, data, producer={"run_id": "r", "attempt": 1})
    assert publish(store, data, producer={"run_id": "r", "attempt": 1}) == first
    assert publish(store, data, producer={"run_id": "r", "attempt": 2}).version == 2
    assert publish(store, data, name="other", producer={"run_id": "r", "attempt": 1}).version == 1


def test_versions_count_as_numbers(store: Store, data: Path) -> None:
    for _ in range(11):
        publish(store, data)
    assert registry.versions(store, "tiny-data") == list(range(1, 12))
    assert registry.resolve(store, ArtifactRef("tiny-data")).version == 11


def test_absent_ones_name_the_nearest(store: Store, data: Path) -> None:
    with pytest.raises(Refused, match=r"^no artifact 'tiny-data' in [^;]*$") as caught:
        registry.resolve(store, ArtifactRef("tiny-data"))
    assert "the store is empty" in str(caught.value.hint)
    publish(store, data)
    publish(store, data)
    with pytest.raises(Refused) as caught:
        registry.resolve(store, ArtifactRef("tiny-dta"))
    assert caught.value.message == f"no artifact 'tiny-dta' in {store.url}; did you mean 'tiny-data'?"
    with pytest.raises(Refused, match="has no version v7") as caught:
        registry.resolve(store, ArtifactRef("tiny-data", 7))
    assert caught.value.hint == "its versions are v1, v2"
    with pytest.raises(Refused, match="no version of artifact 'tiny-data' has the alias 'best'"):
        registry.resolve(store, ArtifactRef("tiny-data", alias="best"), lambda name, alias: None)
    found = registry.resolve(store, ArtifactRef("tiny-data", alias="best"), lambda name, alias: 1)
    assert found.version == 1


def test_names_with_slashes(store: Store, data: Path) -> None:
    publish(store, data, name="super3/rl/data")
    publish(store, data, name="super3")
    assert registry.names(store) == ["super3", "super3/rl/data"]
    assert registry.resolve(store, parse_ref("super3/rl/data")).uri == "art://super3/rl/data:v1"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda store, key: store.put_bytes(key, b"["), "is damaged: it has 1 bytes, its manifest says 2"),
        (lambda store, key: store.put_bytes(key, b"[]"), "is damaged: its sha256 is not the one"),
        (lambda store, key: store.delete_prefix(key), "is missing from the artifact store"),
    ],
)
def test_damage_is_refused_by_name(
    store: Store, data: Path, tmp_path: Path, change: Any, problem: str
) -> None:
    made = publish(store, data)
    key = f"{made.base}/blend.json"
    change(store, key)
    with pytest.raises(StoreError) as caught:
        registry.fetch(store, made, tmp_path / "out")
    assert problem in caught.value.message
    assert store.uri(key) in caught.value.message
    assert not (tmp_path / "out").exists()
    if isinstance(store, FileStore):
        with pytest.raises(StoreError, match="blend"):
            registry.fetch(store, made, tmp_path / "out", link=True)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "a//evil", ""])
def test_a_manifest_cannot_name_files_elsewhere(path: str, data: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    made = publish(store, data)
    values = json.loads(made.to_json())
    values["files"][0]["path"] = path
    store.put_bytes("artifacts/tiny-data/v1.json", json.dumps(values).encode())
    with pytest.raises(StoreError, match=r"v1\.json is damaged: "):
        registry.resolve(store, ArtifactRef("tiny-data"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "x"}'])
def test_a_damaged_manifest_is_named(text: str, data: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    publish(store, data)
    store.put_bytes("artifacts/tiny-data/v1.json", text.encode())
    with pytest.raises(StoreError, match=r"tiny-data/v1\.json is damaged: "):
        registry.resolve(store, ArtifactRef("tiny-data"))


def test_a_folder_store_gives_links(data: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    first = publish(store, data)
    (data / "more").write_text("x")
    second = publish(store, data)
    for made in (first, second, second):
        registry.fetch(store, made, tmp_path / "input", link=True)
        assert (tmp_path / "input").readlink() == store.root / made.base
    assert tree(tmp_path / "input") == tree(data)


def test_fetch_keeps_what_is_right_and_never_deletes_what_it_did_not_make(
    store: Store, data: Path, tmp_path: Path
) -> None:
    made = publish(store, data)
    out = tmp_path / "out"
    registry.fetch(store, made, out)
    inode = (out / "blend.json").stat().st_ino
    registry.fetch(store, made, out)
    assert (out / "blend.json").stat().st_ino == inode
    (out / "mine.txt").write_text("precious")
    for link in (False, isinstance(store, FileStore)):
        with pytest.raises(Refused, match="out is in the way of art://tiny-data:v1"):
            registry.fetch(store, made, out, link=link)
    assert (out / "mine.txt").read_text() == "precious"


def test_an_interrupted_fetch_goes_on_where_it_was(store: Store, data: Path, tmp_path: Path) -> None:
    made = publish(store, data)
    big = f"{made.base}/shards/deep/0.bin"
    content = store.get_bytes(big)
    assert content is not None
    store.delete_prefix(big)
    with pytest.raises(StoreError):
        registry.fetch(store, made, tmp_path / "out")
    partial = tmp_path / ".out.partial"
    (partial / "left over").mkdir()
    (partial / "left over" / "file").touch()
    (partial / "blend.json").write_text("[]")
    store.put_bytes(big, content)
    registry.fetch(store, made, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(data)
    assert not partial.exists()


def test_what_cannot_be_kept_is_named(data: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    os.mkfifo(data / "pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"):
        publish(store, data)
    (data / "pipe").unlink()
    (data / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match="dangling is a link to nothing"):
        publish(store, data)
    (data / "dangling").unlink()
    (data / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(UserError, match="elsewhere is a link to a folder"):
        publish(store, data)
    (data / "elsewhere").unlink()
    (data / ".nemo-sky").mkdir()
    (data / ".nemo-sky" / "x").touch()
    with pytest.raises(UserError, match="this name is nemo-sky's own"):
        publish(store, data)
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no file"):
        publish(store, tmp_path / "empty")
    with pytest.raises(UserError, match="there is no file or folder"):
        publish(store, tmp_path / "absent")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "file").symlink_to(data / "blend.json")
    assert [entry.size for entry in publish(store, tmp_path / "linked").files] == [2]
    assert registry.versions(store, "tiny-data") == [1], "nothing of the refused ones is visible"


@pytest.mark.parametrize(
    ("kind", "metadata", "problem"),
    [
        ("pretrain-dat", DATA, "unknown artifact type 'pretrain-dat'; did you mean 'pretrain-data'?"),
        ("pretrain-data", {"total_tokens": 1}, "pretrain-data metadata: 'total_sequences' is missing"),
        (
            "pretrain-data",
            {**DATA, "total_tokens": "many"},
            "total_tokens must be a whole number, not 'many'",
        ),
        ("pretrain-data", {**DATA, "total_tokens": True}, "total_tokens must be a whole number, not True"),
        ("pretrain-data", {**DATA, "num_shard": 1}, "unknown field 'num_shard'; did you mean 'num_shards'?"),
        ("pretrain-data", {**DATA, "source_datasets": {}}, "source_datasets must be a list of"),
        (
            "pretrain-data",
            {**DATA, "source_datasets": [{"uri": "a"}, {"name": "b"}]},
            "source_datasets[1]: 'uri' is missing",
        ),
        ("eval-report", {"scores": {"accuracy": "good"}}, "scores.accuracy must be a number, not 'good'"),
        ("model", {"step": 1, "extra": []}, "extra must be a mapping"),
    ],
)
def test_metadata_is_checked(kind: str, metadata: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        types.check_metadata(kind, metadata)
    assert problem in caught.value.message


def test_metadata_is_completed() -> None:
    given = {
        **DATA,
        "elapsed_sec": 2,
        "source_datasets": [{"uri": "file:///x", "weight": 1}],
        "extra": {"a": [1]},
    }
    assert types.check_metadata("pretrain-data", given) == {
        **DATA,
        "elapsed_sec": 2.0,
        "source_datasets": [{"uri": "file:///x", "weight": 1.0}],
        "extra": {"a": [1]},
    }
    packed = types.check_metadata("sft-data", {**DATA, "pack_size": 64, "num_shards": None})
    assert packed["data_format"] == "packed_sft_parquet"
    assert "num_shards" not in packed


def test_art_fields(data: Path, tmp_path: Path) -> None:
    made = publish(FileStore(tmp_path / "store"), data, metadata={**DATA, "extra": {"vocab": 99}})
    config = {
        "data": {
            "path": "${art:data,path}",
            "blend": "${art:data}/blend.json",
            "n": "${art:data,total_tokens}",
        },
        "list": [
            "v${art:data,version}",
            "${ art:data , metadata.vocab }",
            "${art:raw,path}",
            "${art:raw,vocab}",
        ],
        "plain": ["${oc.env:HOME}", 3, None],
    }
    found = resolve_art_fields(config, {"data": made, "raw": None}, {"raw": "/abs/raw"})
    assert found == {
        "data": {"path": "$NEMO_SKY_INPUTS/data", "blend": "$NEMO_SKY_INPUTS/data/blend.json", "n": 12},
        "list": ["v1", 99, "/abs/raw", "${art:raw,vocab}"],
        "plain": ["${oc.env:HOME}", 3, None],
    }
    with pytest.raises(Refused, match=r"list\[3\]: .*the input 'raw' is a folder and has no 'vocab'"):
        resolve_art_fields(config, {"data": made, "raw": None}, {"raw": "/abs/raw"}, final=True)
    with pytest.raises(UserError, match=r"x\.y: .*names no input of this stage; did you mean 'data'\?"):
        resolve_art_fields({"x": {"y": "${art:dat,path}"}}, {"data": made}, {})
    with pytest.raises(UserError, match=r"no field 'total_token'; did you mean 'total_tokens'\?"):
        resolve_art_fields(["${art:data,total_token}"], {"data": made}, {})


def test_a_checkpoint_is_published_without_a_copy(store: Store, data: Path, tmp_path: Path) -> None:
    checkpoints.commit_part(store, "r", 5, data, node=0)
    checkpoint = checkpoints.finish_commit(store, "r", 5, 1, {})
    assert checkpoint
    made = publish(store, None, "model", type="model", metadata={"step": 5}, checkpoint=checkpoint)
    assert made.base == checkpoint.base
    assert store.children("artifacts/model") == ["v1.json"]
    registry.fetch(store, made, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(data)


def crash(scenario: str, url: str, endpoint: str, folder: Path) -> int:
    """What crash_points.py counted; its words when it failed."""
    command = [sys.executable, "-m", "tests.unit.crash_points", scenario, url, endpoint, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("scenario", ["publish", "commit", "restore", "prune"])
def test_a_kill_at_any_point_in_a_folder(scenario: str, tmp_path: Path) -> None:
    assert crash(scenario, str(tmp_path / "store"), "-", tmp_path / "work") > 8


@pytest.mark.parametrize(("scenario", "requests"), [("publish", 4), ("commit", 5)])
def test_a_kill_at_any_request_to_s3(
    scenario: str, requests: int, s3_server: S3Server, tmp_path: Path
) -> None:
    assert crash(scenario, s3_server.store().url, s3_server.endpoint, tmp_path / "work") > requests


def test_twenty_publishers_at_once_in_a_folder(tmp_path: Path) -> None:
    assert crash("race", str(tmp_path / "store"), "-", tmp_path / "work") == 20


def test_twenty_publishers_at_once_on_s3(s3_server: S3Server, tmp_path: Path) -> None:
    assert crash("race", s3_server.store().url, s3_server.endpoint, tmp_path / "work") == 20
