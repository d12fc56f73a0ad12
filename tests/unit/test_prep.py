"""Data preparation without Ray: sources, shards as pure functions, bin/idx, masks, packs, receipts."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.bridge.common import ConfigError
from recipes.prep import pretrain, rl, sft, shards
from recipes.prep import settings as settings_of
from recipes.prep.binidx import Writer
from recipes.prep.sources import Source, Unit, rows, text_of, units
from tests.prep import BAD, END, GOOD, make_tokenizer, write_bad


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.text(max_size=30), max_size=30), chunk=st.integers(1, 200))
def test_every_line_is_in_exactly_one_piece(
    lines: list[str], chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    pieces = units(Source("a", str(folder)), chunk)
    read = [row.value["text"] for piece in pieces for row in rows(piece, ["text"])]
    assert read == lines


def test_bad_rows_are_values_with_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(
        b'{"text": "fine"}\n\n{"text": ""}\n{"txt": 1}\n{broken\n\xff\xfe\n'
        b'{"text": "\\ud800"}\n[1]\n{"text": 5}\n'
    )
    reasons = [text_of(row, "text")[1] for row in rows(Unit(str(file), "bad.jsonl", 0, 10**6, 1))]
    missing = "no text under 'text'"
    assert reasons == [
        "", "empty", "empty", missing, "not JSON", "not UTF-8", "not UTF-8", "not a JSON object", missing,
    ]  # fmt: skip


def test_parquet_gzip_and_plain_files_are_read(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": [f"row {n}" for n in range(10)]}), tmp_path / "a.parquet", row_group_size=3
    )
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"text": "zipped"}\n')
    (tmp_path / "c.md").write_text("plain")
    (tmp_path / "d.bin").write_bytes(b"\0")
    pieces = units(Source("mix", str(tmp_path)), 100)
    assert [piece.name for piece in pieces] == ["a.parquet"] * 4 + ["b.jsonl.gz", "c.md"]
    read = [text_of(row, "text")[0] for piece in pieces for row in rows(piece, ["text"])]
    assert read == [*(f"row {n}" for n in range(10)), "zipped", "plain"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": []}, "sources must be a list"),
        ({"sources": [{"name": "a"}]}, "sources.0.path is missing"),
        ({"sources": [{"name": "a", "path": "x", "wieght": 2}]}, "did you mean 'weight'"),
        ({"sources": [{"name": "a", "path": "x", "weight": 0}]}, "sources.0.weight must be above 0"),
        ({"shrads": 3}, "did you mean 'shards'"),
        ({"shards": "many"}, "shards must be a int"),
        ({"shards": 0}, "shards must be at least 1"),
        ({"on_bad": "ignore"}, "on_bad must be skip or fail, not 'ignore'"),
        ({"tokenizer": "./nowhere"}, "tokenizer: there is no file nowhere"),
    ],
)
def test_wrong_settings_are_refused(
    values: dict[str, Any], message: str, tokenizer: Path, tmp_path: Path
) -> None:
    fine = {"output": str(tmp_path / "out"), "sources": [{"name": "a", "path": str(tmp_path)}]}
    if "tokenizer" not in values:
        fine["tokenizer"] = str(tokenizer)
    with pytest.raises(ConfigError, match=message):
        pretrain.prepare({**fine, **values})


def test_a_source_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file of"):
        units(Source("a", str(tmp_path)), 100)
    with pytest.raises(ConfigError, match="there is no file or folder"):
        units(Source("a", str(tmp_path / "gone")), 100)


def task(folder: Path, source: Path, **more: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    pieces = shards.plan([Source("s", str(source))], 1, 7, {})
    units_of = [vars(unit) for unit in pieces[0].units]
    base = {"source": "s", "number": 0, "units": units_of, "folder": str(folder), "seed": 7, "on_bad": "skip"}
    return {**base, "valid": 0.2, "test": 0.1, **more}


def finished(folder: Path, receipt: dict[str, Any]) -> None:
    for name, size in receipt["files"].items():
        target = folder / name
        shards.temporary(target).replace(target)
        assert target.stat().st_size == size


def test_an_empty_shard_leaves_no_file(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "shard", 100)
    assert writer.finish() is False
    assert list(tmp_path.iterdir()) == []


def test_only_what_the_assistant_says_is_trained_on(tokenizer: Path, tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"},
        {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"},
    ]  # fmt: skip
    lines = [{"messages": chat}] * 30 + [
        {"input": "a", "output": "b"},
        {"messages": []},
        {"messages": [chat[0]]},
    ]
    source = tmp_path / "chat.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "out"
    context = {"fields": {"s": "messages"}, "tokenizer": str(tokenizer), "pack_size": 256, "too_long": "drop"}
    receipt = sft.make_shard(task(folder, source, **context, valid=0.0, test=0.0))
    finished(folder, receipt)
    assert receipt["bad"] == {"no chat under 'messages'": 1, "the assistant says nothing": 1}
    loaded = sft.load_tokenizer(str(tokenizer))
    table = pq.read_table(folder / "train/s-000000.idx.parquet").to_pylist()
    assert sum(len(row["seq_start_id"]) for row in table) == 31
    for row in table:
        ends = [*row["seq_start_id"][1:], len(row["input_ids"])]
        assert sum(end - start - 1 for start, end in zip(row["seq_start_id"], ends, strict=True)) <= 256
        for start, end in zip(row["seq_start_id"], ends, strict=True):
            ids, mask = row["input_ids"][start:end], row["loss_mask"][start:end]
            said = loaded.decode([ids[at + 1] for at in range(len(ids) - 1) if mask[at]])
            assert said in (f"4{END}yes{END}", f"b{END}")
            assert mask[-1] == 0


def test_a_chat_that_is_too_long_is_counted_or_cut(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "chat.jsonl"
    source.write_text(json.dumps({"input": "say", "output": "x" * 500}) + "\n")
    context = {
        "fields": {"s": "messages"},
        "tokenizer": str(tokenizer),
        "pack_size": 64,
        "valid": 0.0,
        "test": 0.0,
    }
    dropped = sft.make_shard(task(tmp_path / "a", source, **context, too_long="drop"))
    assert dropped["bad"] == {"longer than a pack of 64 tokens": 1}
    assert dropped["files"] == {}
    cut = sft.make_shard(task(tmp_path / "b", source, **context, too_long="truncate"))
    assert cut["counts"]["truncated"] == 1
    assert cut["counts"]["tokens"] == 65
    with pytest.raises(ConfigError, match=r"s/chat.jsonl@0: longer than a pack .*on_bad: skip"):
        sft.make_shard(task(tmp_path / "c", source, **context, too_long="drop") | {"on_bad": "fail"})


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 100), max_size=60))
def test_packs_hold_everything_once_and_never_too_much(lengths: list[int]) -> None:
    packs = sft.pack(lengths, 100)
    assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= 100 for members in packs)


def test_weights_repeat_and_thin_out_prompts(tmp_path: Path) -> None:
    source = tmp_path / "rl.jsonl"
    good = [{"responses_create_params": {"input": f"é {n}"}} for n in range(400)]
    source.write_text("".join(json.dumps(row) + "\n" for row in [*good, {"x": 1}, {"_hf_placeholder": {}}]))
    context = {"required": ["responses_create_params"], "valid": 0.1, "test": 0.0}
    counts = {}
    for weight in (0.5, 1.0, 2.0):
        folder = tmp_path / str(weight)
        receipt = rl.make_shard(task(folder, source, weights={"s": weight}, **context))
        finished(folder, receipt)
        assert receipt["bad"] == {
            "no 'responses_create_params'": 1,
            "a placeholder for a row of another data set": 1,
        }
        counts[weight] = rl.join(folder, "train", [{"source": "s", "number": 0}])
        assert counts[weight] == len((folder / "train.jsonl").read_text().splitlines())
    assert counts[2.0] == 2 * counts[1.0]
    assert 0.4 * counts[1.0] < counts[0.5] < 0.6 * counts[1.0]


def test_a_plan_depends_on_what_decides_the_bytes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n' * 50)
    source = Source("s", str(tmp_path))

    def digests(seed: int = 1, **more: Any) -> list[str]:
        return [shard.digest for shard in shards.plan([source], 2, seed, more)]

    assert digests() == digests()
    assert len(digests()) == 2
    assert not set(digests()) & set(digests(seed=2))
    assert not set(digests()) & set(digests(tokenizer="other"))
    changed = tmp_path / "a.jsonl"
    changed.write_text(changed.read_text() + '{"text": "more"}\n')
    assert len(digests()) == 2


def test_splits_are_even_and_by_content() -> None:
    found = [shards.split_of(3, f"document {n}", 0.1, 0.05) for n in range(20_000)]
    share = np.array([found.count(split) for split in ("train", "valid", "test")]) / len(found)
    assert share == pytest.approx([0.85, 0.1, 0.05], abs=0.01)


def test_the_end_of_a_document_is_a_token(tokenizer: Path) -> None:
    text = (tokenizer / "tokenizer.json").read_text()
    assert pretrain.end_of_document(text, None) == 0
    with pytest.raises(ConfigError, match="has no token </nothing>"):
        pretrain.end_of_document(text, "</nothing>")
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        settings_of.tokenizer_text(str(tokenizer / "tokenizer_config.json"))


def test_a_receipt_counts_only_while_its_files_are_whole(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(20)))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text())
    (shard,) = shards.plan([Source("s", str(source))], 1, 7, {})
    row = {"task": json.dumps(task(folder, source, fields={"s": "text"}, end=0, digest=shard.digest))}
    assert shards._receipt(folder, shard) is None
    made = json.loads(shards._one(row, pretrain.make_shard)["receipt"])
    assert shards._receipt(folder, shard) == made
    first = {name: (folder / name).read_bytes() for name in made["files"]}
    name = next(name for name in made["files"] if name.endswith(".bin"))
    (folder / name).write_bytes(first[name][:-1])
    assert shards._receipt(folder, shard) is None
    shards._one(row, pretrain.make_shard)  # again, over what is there: the same bytes
    assert {name: (folder / name).read_bytes() for name in made["files"]} == first
    (other,) = shards.plan([Source("s", str(source))], 1, 8, {})
    assert shards._receipt(folder, other) is None


def test_an_output_is_whole_or_absent(tmp_path: Path) -> None:
    output = tmp_path / "output"
    folder = shards.partial(output)
    (folder / ".receipts").mkdir()
    (folder / "blend.json").write_text("{}")
    output.mkdir()  # as the agent may have made it
    shards.finish(folder, output)
    assert [path.name for path in output.iterdir()] == ["blend.json"]
    with pytest.raises(ConfigError, match="exists and is not empty"):
        shards.finish(shards.partial(output), output)


def settings_for(stage: str, tokenizer: Path) -> tuple[Any, dict[str, Any]]:
    """A stage's maker, and what it needs beside what all need."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "pretrain": (pretrain.make_shard, {"fields": {"s": "text"}, "end": 0}),
        "sft": (
            sft.make_shard,
            {"fields": {"s": "messages"}, "tokenizer": str(tokenizer), "pack_size": 99, "too_long": "drop"},
        ),
        "rl": (rl.make_shard, {"required": ["responses_create_params"], "weights": {"s": 1.0}}),
    }
    return found[stage]


def with_tokenizer(folder: Path, tokenizer: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text())
    return folder


@pytest.mark.parametrize("stage", BAD)
def test_every_row_is_kept_or_counted(stage: str, tokenizer: Path, tmp_path: Path) -> None:
    expected = write_bad(tmp_path / "bad.jsonl", stage)
    make_shard, needs = settings_for(stage, tokenizer)
    folder = with_tokenizer(tmp_path / "out", tokenizer)
    receipt = make_shard(task(folder, tmp_path / "bad.jsonl", **needs))
    assert receipt["bad"] == expected
    assert set(receipt["examples"]) == set(expected)
    kept = [receipt["counts"].get(key, 0) for key in ("examples", "train_documents", "train_rows")]
    others = ("valid_documents", "test_documents", "valid_rows", "test_rows")
    assert sum(kept) + sum(receipt["counts"].get(key, 0) for key in others) == 20


@pytest.mark.parametrize(
    ("stage", "line", "reason"), [(stage, *bad) for stage, all_bad in BAD.items() for bad in all_bad]
)
def test_every_kind_of_bad_row_can_end_the_run(
    stage: str, line: bytes, reason: str, tokenizer: Path, tmp_path: Path
) -> None:
    good = json.dumps(GOOD[stage]).encode() + b"\n"
    source = tmp_path / "bad.jsonl"
    source.write_bytes(good + line + b"\n" + good)
    make_shard, needs = settings_for(stage, tokenizer)
    folder = with_tokenizer(tmp_path / "out", tokenizer)
    with pytest.raises(ConfigError) as refused:
        make_shard(task(folder, source, **needs) | {"on_bad": "fail"})
    assert str(refused.value).startswith(f"s/bad.jsonl@{len(good)}: {reason} (on_bad: skip")


def test_damage_in_the_middle_of_a_file_is_a_bad_row(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": f"line {n}"}) + "\n" for n in range(50))
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    table = pa.table({"text": [f"{n} " + "x" * 1000 for n in range(600)]})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=100, compression="gzip")
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    size = pq.ParquetFile(tmp_path / "b.parquet").metadata.row_group(0).total_byte_size
    assert size > 200
    content[40:140] = b"\xff" * 100
    (tmp_path / "b.parquet").write_bytes(content)
    for name in ("a.jsonl.gz", "b.parquet"):
        pieces = units(Source("s", str(tmp_path), pattern=name), 10**9)
        read = [row for piece in pieces for row in rows(piece, ["text"])]
        assert [row.bad for row in read if row.bad], name
        assert all("damaged" in row.bad for row in read if row.bad)


def test_parquet_reads_only_what_is_asked_for_and_misses_no_row(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(50)], "other": list(range(50))})
    pq.write_table(table, tmp_path / "a.parquet")
    (piece,) = units(Source("s", str(tmp_path)), 10**9)
    assert [row.value for row in rows(piece, ["text"])] == [{"text": f"row {n}"} for n in range(50)]
    assert [row.value for row in rows(piece, ["gone"])] == table.to_pylist()
    assert [row.value for row in rows(piece)] == table.to_pylist()


def test_strings_of_parquet_that_are_not_utf8_are_bad_rows(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"\xff\xfe", b"also fine"]).cast(pa.binary())
    offsets, data = text.buffers()[1:]
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(3, offsets, data)}), tmp_path / "a.parquet")
    (piece,) = units(Source("s", str(tmp_path)), 10**9)
    assert [text_of(row, "text") for row in rows(piece, ["text"])] == [
        ("fine", ""), ("", "not UTF-8"), ("also fine", ""),
    ]  # fmt: skip


def test_a_document_of_which_nothing_is_left_is_counted(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.BPE({END: 0, "a": 1}, []))  # no token for anything else, and none for unknown
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "out"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    source = tmp_path / "text.jsonl"
    source.write_text('{"text": "a a"}\n{"text": "bbb"}\n')
    receipt = pretrain.make_shard(task(folder, source, fields={"s": "text"}, end=0, valid=0.0, test=0.0))
    assert receipt["bad"] == {"the tokenizer makes nothing of it": 1}
    assert receipt["counts"]["train_documents"] == 1
    assert receipt["counts"]["train_tokens"] == 3


def test_a_long_document_gives_the_ids_of_the_whole(tokenizer: Path, tmp_path: Path) -> None:
    from recipes.prep.encoding import PIECE_CHARACTERS

    texts = ["short", "word and\n" * (PIECE_CHARACTERS // 2), "é" * 3 * PIECE_CHARACTERS, "last"]
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    folder = with_tokenizer(tmp_path / "out", tokenizer)
    receipt = pretrain.make_shard(task(folder, source, fields={"s": "text"}, end=0, valid=0.0, test=0.0))
    finished(folder, receipt)
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    whole = [[*encoder.encode(text).ids, 0] for text in texts]
    assert np.fromfile(folder / "train/s/shard_000000.bin", np.uint16).tolist() == list(
        itertools.chain(*whole)
    )


def test_the_shards_of_prompts_are_never_too_large_to_sort(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"responses_create_params": {"input": "x"}}\n' * 30_000)
    few = shards.plan([Source("s", str(tmp_path))], 1, 7, {})
    more = shards.plan([Source("s", str(tmp_path))], 1, 7, {}, 300_000)
    assert len(few) == 1
    assert len(more) == 5


def test_what_a_killed_run_was_writing_is_removed(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    (folder / "train").mkdir(parents=True)
    (folder / "train/.shard_000000.bin.123").write_text("half")
    (folder / "train/shard_000000.bin").write_text("whole")
    assert shards.make([], folder, pretrain.make_shard, {}) == ({}, [])
    assert [path.name for path in (folder / "train").iterdir()] == ["shard_000000.bin"]
