"""Where rows are from: local files and folders, object stores, data sets of the Hugging Face hub.

A source becomes units, pieces that are read on their own: a byte range of a JSONL file, row groups of a
Parquet file, or one whole file. Every row that cannot be used is a value too, with the reason.
"""

from __future__ import annotations

import codecs
import fnmatch
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from recipes.bridge.common import ConfigError, require

HUB = "hf://"
JSONL = (".jsonl", ".ndjson", ".json")
PACKED = (".gz",)
_PARQUET_ROWS = 16  # so few that a batch of long documents is small
KINDS = (*JSONL, ".parquet", ".txt", ".md", ".py", ".rst")


@dataclass(frozen=True)
class Source:
    """One data set of a blend.

    ``path`` is a file, a folder, ``s3://`` or another URL that pyarrow opens, or ``hf://OWNER/NAME[@REVISION]``.
    ``pattern`` picks files of a folder, by their path in it. ``subset`` keeps the hub files that have it as a
    folder or as the beginning of their name. ``weight`` is the data set's share of the blend, in tokens.
    """

    name: str
    path: str
    weight: float = 1.0
    pattern: str = "*"
    subset: str | None = None
    field: str = "text"


@dataclass(frozen=True)
class Unit:
    """A piece of a file: bytes ``start`` to ``end`` of JSONL, those row groups of Parquet, else all of it."""

    path: str
    name: str
    start: int
    end: int
    size: int


@dataclass(frozen=True)
class Row:
    """``value`` is the row, or the text of a plain file under the source's field. ``bad`` says why there is
    none."""

    name: str
    value: dict[str, Any]
    bad: str = ""


def units(source: Source, chunk: int) -> list[Unit]:
    """The pieces of a source in the order of their names, of about ``chunk`` bytes where they can be cut.

    Raises ConfigError when there is nothing to read.
    """
    found: list[Unit] = []
    for path, name, size in files(source):
        if name.endswith(".parquet"):
            found += _row_groups(path, name, size, chunk)
        elif name.endswith(JSONL) and size > chunk:
            starts = range(0, size, chunk)
            found += [Unit(path, name, at, min(at + chunk, size), min(chunk, size - at)) for at in starts]
        else:
            found.append(Unit(path, name, 0, size, size))
    return found


def files(source: Source) -> list[tuple[str, str, int]]:
    """Path, name within the source, and size in bytes of each file, sorted by name."""
    if source.path.startswith(HUB):
        listed = _hub_files(source)
    elif "://" in source.path:
        listed = _remote_files(source)
    else:
        root = Path(source.path)
        require(root.exists(), f"source {source.name}: there is no file or folder {root}")
        paths = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
        base = root.parent if root.is_file() else root
        listed = [(str(path), path.relative_to(base).as_posix(), path.stat().st_size) for path in paths]
    kept = sorted(
        (item for item in listed if _kind(item[1]) and fnmatch.fnmatch(item[1], source.pattern)),
        key=lambda item: item[1],
    )
    require(kept, f"source {source.name}: no file of {source.path} matches {source.pattern!r}")
    return kept


def rows(unit: Unit, keys: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of one piece, bad ones included, in the memory of one row or a little more.

    ``keys`` are those that the caller reads, all without: the first has the text of a plain file. What
    follows a place where a compressed file or Parquet is damaged is lost, which is a bad row too.
    """
    if unit.name.endswith(".parquet"):
        yield from _parquet_rows(unit, keys)
        return
    try:
        with _opened(unit) as file:
            if unit.name.removesuffix(".gz").endswith(JSONL):
                yield from _json_rows(file, unit)
            else:
                yield Row(unit.name, {(keys or ("text",))[0]: file.read().decode("utf-8")})
    except UnicodeDecodeError:
        yield Row(unit.name, {}, "not UTF-8")
    except (gzip.BadGzipFile, EOFError, zlib.error):
        yield Row(unit.name, {}, "damaged: the rest of the file is lost")


def text_of(row: Row, field: str) -> tuple[str, str]:
    """A row's text and why it has none: exactly one of the two is empty."""
    if row.bad:
        return "", row.bad
    text = row.value.get(field)
    if not isinstance(text, str):
        return "", f"no text under {field!r}"
    if not text.strip():
        return "", "empty"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return "", "not UTF-8"
    return text, ""


def plain(unit: Unit) -> dict[str, Any]:
    return asdict(unit)


def _kind(name: str) -> bool:
    for packed in PACKED:
        name = name.removesuffix(packed)
    return name.endswith(KINDS)


def _json_rows(file: BinaryIO, unit: Unit) -> Iterator[Row]:
    """Lines that begin within the unit: the first may be the end of the piece before, the last may reach
    into the next."""
    cut = not unit.name.endswith(PACKED)
    at = unit.start if cut else 0
    if at:
        file.seek(at - 1)
        at += len(file.readline()) - 1
    while not cut or at < unit.end:
        line = file.readline()
        if not line:
            return
        name = f"{unit.name}@{at}"
        if at == 0:
            at, line = len(line), line.removeprefix(codecs.BOM_UTF8)
        else:
            at += len(line)
        if not line.strip():
            yield Row(name, {}, "empty")
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield Row(name, {}, "not UTF-8")
        except (ValueError, RecursionError):
            yield Row(name, {}, "not JSON")
        else:
            yield Row(name, value) if isinstance(value, dict) else Row(name, {}, "not a JSON object")


def _parquet_rows(unit: Unit, keys: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    at = 0
    try:
        with _opened(unit) as file:
            table = pq.ParquetFile(file)
            columns = [key for key in keys if key in table.schema_arrow.names] or None
            groups = list(range(unit.start, unit.end))
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, row_groups=groups, columns=columns):
                for index in range(batch.num_rows):
                    yield Row(f"{unit.name}#{unit.start}+{at}", *_parquet_row(batch.slice(index, 1)))
                    at += 1
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) or ("://" in unit.path and not unit.path.startswith(HUB)):
            raise  # not the file's fault: a disk or a network that may work another time
        yield Row(f"{unit.name}#{unit.start}+{at}", {}, "damaged: the rest of its row groups is lost")


def _parquet_row(row: Any) -> tuple[dict[str, Any], str]:
    try:
        value: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError:  # Parquet does not check what it calls a string
        return {}, "not UTF-8"
    return value, ""


def _row_groups(path: str, name: str, size: int, chunk: int) -> list[Unit]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _opened(Unit(path, name, 0, size, size)) as file:
            groups = pq.ParquetFile(file).num_row_groups
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} is not a Parquet file: {error}") from None
    each = max(1, round(groups * chunk / max(size, 1)))
    starts = range(0, groups, each)
    ends = [min(at + each, groups) for at in starts]
    return [
        Unit(path, name, at, end, size * (end - at) // groups) for at, end in zip(starts, ends, strict=True)
    ]


def _opened(unit: Unit) -> BinaryIO:
    path = _downloaded(unit.path)
    if "://" in path:
        from pyarrow import fs

        system, inner = fs.FileSystem.from_uri(path)
        file: Any = system.open_input_file(inner)
        file = file if unit.name.endswith(".parquet") else io.BufferedReader(file)
    else:
        file = Path(path).open("rb")  # noqa: SIM115 - the caller closes it
    return gzip.open(file) if unit.name.endswith(".gz") else file  # type: ignore[return-value]


def _remote_files(source: Source) -> list[tuple[str, str, int]]:
    from pyarrow import ArrowInvalid, fs

    scheme = source.path.partition("://")[0]
    try:
        system, root = fs.FileSystem.from_uri(source.path.rstrip("/"))
        infos = system.get_file_info(fs.FileSelector(root, recursive=True))
    except (ArrowInvalid, OSError) as error:
        raise ConfigError(f"source {source.name}: cannot list {source.path}: {error}") from None
    return [
        (f"{scheme}://{item.path}", item.path.removeprefix(f"{root}/"), item.size)
        for item in infos
        if item.type == fs.FileType.File
    ]


def _hub_files(source: Source) -> list[tuple[str, str, int]]:
    """Files of a data set at the commit that its revision means now, which makes the paths exact."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    name, _, revision = source.path.removeprefix(HUB).partition("@")
    try:
        info = HfApi().dataset_info(name, revision=revision or None, files_metadata=True)
    except RepositoryNotFoundError:
        raise ConfigError(
            f"source {source.name}: the hub has no data set {name!r}, or you may not read it (HF_TOKEN)"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"source {source.name}: cannot reach the hub: {error}") from None
    base, found = f"{HUB}{name}@{info.sha}", info.siblings or []
    listed = [(f"{base}/{file.rfilename}", file.rfilename, file.size or 0) for file in found]
    if source.subset:
        wanted = source.subset
        listed = [
            item
            for item in listed
            if wanted in item[1].split("/")[:-1] or item[1].rpartition("/")[2].startswith(wanted)
        ]
    return listed


def _downloaded(path: str) -> str:
    if not path.startswith(HUB):
        return path
    from huggingface_hub import hf_hub_download

    name, _, rest = path.removeprefix(HUB).partition("@")
    revision, _, file = rest.partition("/")
    return hf_hub_download(name, file, repo_type="dataset", revision=revision)
