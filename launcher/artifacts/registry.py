"""Artifacts by name and version: publish, resolve, fetch.

    artifacts/NAME/data/<publish id>/<files>    written first
    artifacts/NAME/vN.json                      the commit point: created last, and only if absent

A publisher that dies leaves files that no manifest names: nobody sees them, and a retry takes a new id.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.artifacts import transfer, types
from launcher.artifacts.checkpoints import Checkpoint, pin
from launcher.artifacts.manifest import FileEntry, Manifest, digest_of
from launcher.artifacts.store import FileStore, Store, StoreError
from launcher.artifacts.transfer import Progress
from launcher.artifacts.uri import ArtifactRef, check_name, decode_name, encode_name
from launcher.errors import Refused, UserError, did_you_mean

_ROOT = "artifacts"
_VERSION_FILE = re.compile(r"v([1-9]\d*)\.json")

# (artifact's name, alias) -> version, None when there is no such alias.
AliasVersion = Callable[[str, str], int | None]


def publish(
    store: Store,
    *,
    name: str,
    type: str,
    metadata: Mapping[str, Any],
    inputs: Mapping[str, str],
    producer: Mapping[str, Any],
    directory: Path | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Make the next version of ``name`` out of a folder (or one file), or out of a committed checkpoint.

    A checkpoint is not copied: the version names the files where they lie. Neither are files uploaded
    whose digest a version of ``name`` already has. When the producer's ``run_id`` and ``attempt`` have
    published ``name`` before, that version is returned: a retry after a crash makes no second one.
    Raises UserError for a bad name, type, metadata or file; StoreError when the store fails.
    """
    if (directory is None) == (checkpoint is None):
        raise ValueError("publish takes either a directory or a checkpoint")
    check_name(name)
    checked = types.check_metadata(type, metadata)
    earlier = [_read(store, name, version) for version in versions(store, name)]
    if done := _already_published(earlier, producer):
        return done
    if checkpoint is not None:
        pin(store, checkpoint)
        base, files = checkpoint.base, checkpoint.files
    else:
        assert directory is not None
        base, files = _place(store, name, directory, earlier, progress)
    manifest = Manifest(
        name=name,
        version=max((item.version for item in earlier), default=0) + 1,
        type=type,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        base=base,
        files=files,
        digest=digest_of(files),
        metadata=checked,
        inputs=dict(inputs),
        # The id keeps two publishers' manifests apart even when everything else in them is equal.
        producer={**producer, "publish_id": uuid.uuid4().hex},
    )
    while not store.put_bytes(_key(name, manifest.version), manifest.to_json().encode(), if_absent=True):
        manifest = replace(manifest, version=manifest.version + 1)
    return manifest


def import_path(
    store: Store,
    path: Path,
    name: str,
    type: str,
    metadata: Mapping[str, Any],
    progress: Progress | None = None,
) -> Manifest:
    """Publish data or a model that nemo-sky did not make; the producer says where it came from."""
    return publish(
        store,
        name=name,
        type=type,
        metadata=metadata,
        inputs={},
        producer={"imported_from": str(path.absolute())},
        directory=path,
        progress=progress,
    )


def resolve(store: Store, ref: ArtifactRef, alias_version: AliasVersion | None = None) -> Manifest:
    """The manifest of the version that ``ref`` names; without a version, the highest.

    ``alias_version`` looks aliases up. Raises Refused, with the nearest name or the versions that exist,
    when there is no such version.
    """
    version = ref.version
    if ref.alias:
        version = alias_version(ref.name, ref.alias) if alias_version else None
        if version is None:
            _refuse_absent_name(store, ref.name)
            raise Refused(
                f"no version of artifact {ref.name!r} has the alias {ref.alias!r}",
                hint=f"{_existing(versions(store, ref.name))}; `nemo-sky artifacts alias` gives one a name",
            )
    if version is not None and (data := store.get_bytes(_key(ref.name, version))) is not None:
        return _parse(store, ref.name, version, data)
    existing = _refuse_absent_name(store, ref.name)
    if version is None:
        return _read(store, ref.name, existing[-1])
    raise Refused(f"artifact {ref.name!r} in {store.url} has no version v{version}", hint=_existing(existing))


def names(store: Store) -> list[str]:
    """The names that have at least one version, sorted."""
    segments = [item.removesuffix("/") for item in store.children(_ROOT) if item.endswith("/")]
    return sorted(name for name in map(decode_name, segments) if versions(store, name))


def versions(store: Store, name: str) -> list[int]:
    """The versions of ``name``, lowest first; empty when there is no such artifact."""
    found = map(_VERSION_FILE.fullmatch, store.children(f"{_ROOT}/{encode_name(check_name(name))}"))
    return sorted(int(match.group(1)) for match in found if match)


def fetch(
    store: Store, manifest: Manifest, dest: Path, progress: Progress | None = None, link: bool = False
) -> None:
    """Make ``dest`` the artifact's folder, every file verified by size and sha256.

    With ``link`` and a store in a folder, ``dest`` becomes a symbolic link instead of a copy; the files
    behind it are read-only. A ``dest`` that is already right is left alone, a link is replaced. Raises
    Refused naming the file that is missing or damaged, and when ``dest`` holds something else.
    """
    if link and (source := _local_folder(store, manifest)):
        if dest.exists() and not dest.is_symlink() and (not dest.is_dir() or any(dest.iterdir())):
            raise Refused(f"{dest} is in the way of {manifest.uri}", hint="remove it, or name another place")
        _verify_in_place(store, manifest, progress)
        _link(dest, source)
        return
    if not dest.is_symlink() and transfer.holds_exactly(dest, manifest.files):
        return
    if dest.exists() and not dest.is_symlink() and (not dest.is_dir() or any(dest.iterdir())):
        raise Refused(f"{dest} is in the way of {manifest.uri}", hint="remove it, or name another place")
    dest.parent.mkdir(parents=True, exist_ok=True)
    transfer.download(store, manifest.base, manifest.files, dest, progress)


def _place(
    store: Store, name: str, path: Path, earlier: list[Manifest], progress: Progress | None
) -> tuple[str, tuple[FileEntry, ...]]:
    """Where the files are, after an upload unless a version already has the same."""
    found = transfer.scan(path)
    shape = transfer.sizes(found)
    alike = [item for item in earlier if {entry.path: entry.size for entry in item.files} == shape]
    if alike:
        # Hashing costs a read of everything, so it is done only when sizes and names already agree.
        digest = digest_of(transfer.hash_files(found))
        for item in alike:
            if item.digest == digest:
                return item.base, item.files
    base = f"{_ROOT}/{encode_name(name)}/data/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    return base, transfer.upload(store, base, found, progress)


def _already_published(earlier: list[Manifest], producer: Mapping[str, Any]) -> Manifest | None:
    run, attempt = producer.get("run_id"), producer.get("attempt")
    if run is None or attempt is None:
        return None
    mine = [m for m in earlier if m.producer.get("run_id") == run and m.producer.get("attempt") == attempt]
    return mine[-1] if mine else None


def _refuse_absent_name(store: Store, name: str) -> list[int]:
    """The versions of ``name``. Raises Refused with the nearest name when there are none."""
    existing = versions(store, name)
    if not existing:
        known = names(store)
        raise Refused(
            f"no artifact {name!r} in {store.url}{did_you_mean(name, known)}",
            hint=None if known else "the store is empty: run the stage that makes it, or import it",
        )
    return existing


def _existing(existing: list[int]) -> str:
    shown = ", ".join(f"v{version}" for version in existing[-10:])
    return f"its versions are {shown}" if len(existing) <= 10 else f"its newest versions are {shown}"


def _key(name: str, version: int) -> str:
    return f"{_ROOT}/{encode_name(name)}/v{version}.json"


def _read(store: Store, name: str, version: int) -> Manifest:
    data = store.get_bytes(_key(name, version))
    if data is None:
        raise Refused(f"artifact {name!r} in {store.url} has lost its version v{version}")
    return _parse(store, name, version, data)


def _parse(store: Store, name: str, version: int, data: bytes) -> Manifest:
    source = store.uri(_key(name, version))
    manifest = Manifest.from_json(data, source)
    if (manifest.name, manifest.version) != (name, version):
        raise StoreError(f"{source} is damaged: it is the manifest of {manifest.uri}")
    return manifest


def _local_folder(store: Store, manifest: Manifest) -> Path | None:
    return store.root / manifest.base if isinstance(store, FileStore) else None


def _verify_in_place(store: Store, manifest: Manifest, progress: Progress | None) -> None:
    done = 0
    for entry in manifest.files:
        if entry.is_folder:
            Path(store.uri(f"{manifest.base}/{entry.path.removesuffix('/')}")).mkdir(
                parents=True, exist_ok=True
            )
            continue
        source = store.uri(f"{manifest.base}/{entry.path}")
        if not Path(source).is_file():
            raise StoreError(f"{source} is missing from the artifact store")
        transfer.verify(Path(source), entry, source)
        done += entry.size
        if progress:
            progress(done, manifest.bytes)


def _link(dest: Path, source: Path) -> None:
    temporary = dest.with_name(f".{dest.name}.{uuid.uuid4().hex}")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary.symlink_to(source)
        if dest.is_dir() and not dest.is_symlink():
            dest.rmdir()
        temporary.replace(dest)
    except OSError as error:
        raise UserError(f"cannot link {dest} to {source}: {error.strerror}") from error


def made_with(store: Store, name: str, key: str, value: str) -> Manifest | None:
    """The newest version of ``name`` whose producer has ``value`` under ``key``, such as its run's id."""
    for version in reversed(versions(store, name)):
        manifest = resolve(store, ArtifactRef(name, version, None))
        if manifest.producer.get(key) == value:
            return manifest
    return None
