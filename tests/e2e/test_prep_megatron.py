"""What data preparation writes, read by Megatron-Core itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.prep import pretrain
from recipes.prep.sources import Source
from tests.prep import make_tokenizer
from tests.unit.test_prep import finished, task


def test_tokens_are_read_back_by_megatron(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    texts = [f"document {n} " * (n + 1) for n in range(40)]
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text())
    receipt = pretrain.make_shard(task(folder, source, fields={"s": "text"}, end=0))
    finished(folder, receipt)
    found = []
    for split in ("train", "valid", "test"):
        data = indexed.IndexedDataset(str(folder / split / "s/shard_000000"))
        assert len(data.document_indices) == receipt["counts"][f"{split}_documents"] + 1
        documents = [data[index].tolist() for index in range(len(data))]
        assert sum(map(len, documents)) == receipt["counts"][f"{split}_tokens"]
        assert all(ids[-1] == 0 for ids in documents)
        found += documents
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert sorted(encoder.decode(ids[:-1]) for ids in found) == sorted(texts)
    sources = [Source("s", str(source), weight=3.0)]
    blend = pretrain.blend_of(sources, [{**receipt, "source": "s", "number": 0}])
    assert blend["train"] == ["3", "train/s/shard_000000"]
