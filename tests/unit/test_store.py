"""Both stores behave alike; S3 over a real HTTP server."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.artifacts import s3_store
from launcher.artifacts.store import FileStore, S3Store, Store, StoreError, open_store
from launcher.errors import UserError

if TYPE_CHECKING:
    from tests.unit.conftest import S3Server


def test_a_file_comes_back_as_it_went(store: Store, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    source = tmp_path / "source"
    source.write_bytes(content)
    sent: list[int] = []
    got: list[int] = []
    entry = store.put_file("a/b.bin", source, sent.append)
    assert (entry.path, entry.size, entry.sha256) == ("a/b.bin", 300_000, hashlib.sha256(content).hexdigest())
    store.get_file("a/b.bin", tmp_path / "back", got.append)
    assert (tmp_path / "back").read_bytes() == content
    assert sum(sent) == sum(got) == 300_000
    assert store.size("a/b.bin") == 300_000


def test_an_empty_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert store.put_file("empty", tmp_path / "empty").size == 0
    store.get_file("empty", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b""
    assert store.size("empty") == 0
    assert store.get_bytes("empty") == b""


def test_large_files_go_in_parts(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "PART_BYTES", 5 * 1024 * 1024)
    store = s3_server.store()
    content = os.urandom(12 * 1024 * 1024 + 7)
    (tmp_path / "large").write_bytes(content)
    entry = store.put_file("large", tmp_path / "large")
    assert entry.sha256 == hashlib.sha256(content).hexdigest()
    store.get_file("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    head = store._client().head_object(Bucket=store.bucket, Key=store._key("large"))
    assert head["ETag"].strip('"').endswith("-3"), "three parts, not one"


def test_small_content_and_absence(store: Store) -> None:
    assert store.get_bytes("x/y.json") is None
    assert store.size("x/y.json") is None
    assert store.put_bytes("x/y.json", b"1")
    assert store.put_bytes("x/y.json", b"2")
    assert store.get_bytes("x/y.json") == b"2"
    assert not store.put_bytes("x/y.json", b"3", if_absent=True)
    assert store.get_bytes("x/y.json") == b"2"
    assert store.put_bytes("x/z.json", b"3", if_absent=True)


def test_lists_are_of_folders_not_of_text_prefixes(store: Store) -> None:
    for key in ("run/1/a", "run/1/b/c", "run/10/d", "run/1x"):
        store.put_bytes(key, b"")
    assert store.list("run/1") == ["run/1/a", "run/1/b/c"]
    assert store.list("run/1/") == ["run/1/a", "run/1/b/c"]
    assert store.list("nothing") == []
    assert store.list("") == ["run/1/a", "run/1/b/c", "run/10/d", "run/1x"]
    assert store.children("run") == ["1/", "10/", "1x"]
    assert store.children("run", "1") == ["1/", "10/", "1x"]
    assert store.children("run", "10") == ["10/"]
    assert store.children("run", "2") == []
    assert store.children("run/1") == ["a", "b/"]
    assert store.children("") == ["run/"]
    assert store.children("nothing") == []
    store.delete_prefix("run/1")
    store.delete_prefix("run/1x")
    store.delete_prefix("nothing")
    assert store.list("") == ["run/10/d"]


def test_lists_and_deletions_go_past_one_page(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "KEYS_AT_ONCE", 4)
    store = s3_server.store()
    keys = [f"many/{number:02}" for number in range(11)]
    for key in keys:
        store.put_bytes(key, b"")
    assert store.list("many") == keys
    assert store.children("many") == [key.removeprefix("many/") for key in keys]
    store.delete_prefix("many")
    assert store.list("") == []


def test_one_of_many_creates_a_key(store: Store) -> None:
    barrier = threading.Barrier(16)

    def create(number: int) -> bool:
        barrier.wait()
        return store.put_bytes("claim", b"%d" % number, if_absent=True)

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number, won in enumerate(pool.map(create, range(16))) if won]
    assert len(winners) == 1
    assert store.get_bytes("claim") == b"%d" % winners[0]


def test_a_missing_file_is_named_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere/x.*is missing from the artifact store"):
        store.get_file("nowhere/x", tmp_path / "back")
    assert list(tmp_path.iterdir()) == []


def test_only_regular_files_are_taken(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"):
        store.put_file("x", tmp_path / "pipe")
    with pytest.raises(UserError, match=r"cannot read .*gone"):
        store.put_file("x", tmp_path / "gone")


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../../b", "a//b", "a/./b", "a\0b"])
def test_keys_stay_below_the_root(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"relative|leave"):
        FileStore(tmp_path).put_bytes(key, b"")


def test_check_passes_and_leaves_nothing(store: Store) -> None:
    store.check()
    assert store.list("") == []
    assert store.children("") == []


def test_content_in_a_folder_cannot_be_changed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    store = FileStore(tmp_path / "store")
    store.put_file("a", tmp_path / "source")
    assert (tmp_path / "store" / "a").stat().st_mode & 0o222 == 0
    store.get_file("a", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode & 0o200


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory") as caught:
        FileStore(tmp_path / "file" / "store").check()
    assert "artifacts:" in str(caught.value.hint)


def test_s3_that_is_not_there_is_refused_quickly(s3_server: S3Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StoreError, match=f"cannot write s3://b-b-b/p.* at {endpoint}") as caught:
            S3Store("b-b-b", "p", endpoint).check()
    assert "s3_endpoint" in str(caught.value.hint)


def test_s3_that_does_not_answer_is_given_up_in_time(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3_store.CHECK_SECONDS <= 5
    monkeypatch.setattr(s3_store, "CHECK_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"s3://b-b-b/p at .* did not answer within 1 seconds"):
            S3Store("b-b-b", "p", f"http://127.0.0.1:{silent.getsockname()[1]}").check()
        assert time.monotonic() - started < 10, "far less than boto3 waits by itself"


def test_s3_errors_name_the_bucket_and_what_to_do(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    absent = S3Store("no-such-bucket", "", s3_server.endpoint)
    for call in (absent.check, lambda: absent.get_bytes("k"), lambda: absent.list("k")):
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/.* at http://") as caught:
            call()
        assert caught.value.hint == "create the bucket 'no-such-bucket', or name another in `artifacts:`"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"[Uu]nable to locate credentials") as caught:
        s3_server.store().check()
    assert "AWS_PROFILE" in str(caught.value.hint)
    monkeypatch.setenv("AWS_PROFILE", "absent-profile")
    with pytest.raises(StoreError, match="absent-profile"):
        s3_server.store().check()


def test_open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_store(str(tmp_path)).url == str(tmp_path)
    assert open_store(f"file://{tmp_path}").url == str(tmp_path)
    s3 = open_store("s3://bucket/a/b/", "http://h:1")
    assert isinstance(s3, S3Store)
    assert (s3.url, s3.uri("k"), s3.endpoint) == ("s3://bucket/a/b", "s3://bucket/a/b/k", "http://h:1")
    assert open_store("s3://bucket").uri("k") == "s3://bucket/k"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://from-env:1")
    assert getattr(open_store("s3://bucket"), "endpoint") == "http://from-env:1"  # noqa: B009
    for bad in ("s3://", "s3://UPPER/x", "gs://bucket/x", "s3:///x"):
        with pytest.raises(UserError, match="artifacts:"):
            open_store(bad)
    with pytest.raises(StoreError, match=r"(?i)invalid endpoint"):
        open_store("s3://bucket", "not a url").check()
