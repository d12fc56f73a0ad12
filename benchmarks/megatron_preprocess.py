"""What Megatron-LM's ``tools/preprocess_data.py --append-eod`` does, step by step, for one JSONL file.

    python benchmarks/megatron_preprocess.py INPUT.jsonl OUTPUT_PREFIX TOKENIZER_FOLDER WORKERS

Written after Megatron-LM at d98e8a6 (August 2026), because its script imports Megatron's training package,
which pip does not install: a forked pool whose workers each build the tokenizer, ``imap`` over the lines in
chunks of 32, ids by ``AutoTokenizer(text).input_ids`` as its ``HuggingFaceTokenizer`` calls it, and the
parent adds every document to megatron-core's own ``IndexedDatasetBuilder``.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from typing import Any

from megatron.core.datasets import indexed_dataset
from transformers import AutoTokenizer


class Encoder:
    tokenizer: Any = None

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def initializer(self) -> None:
        Encoder.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def encode(self, line: str) -> tuple[dict[str, list[int]], dict[str, list[int]], int]:
        text = json.loads(line)["text"]
        ids = Encoder.tokenizer(text).input_ids
        lengths = [len(ids)]
        if ids:
            ids.append(Encoder.tokenizer.eos_token_id)
            lengths[-1] += 1
        return {"text": ids}, {"text": lengths}, len(line)


def main(source: str, prefix: str, folder: str, workers: int) -> None:
    encoder = Encoder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with open(source, encoding="utf-8") as lines:
        pool = multiprocessing.get_context("fork").Pool(workers, initializer=encoder.initializer)
        encoded = pool.imap(encoder.encode, lines, 32)
        builder = indexed_dataset.IndexedDatasetBuilder(
            f"{prefix}_text_document.bin", dtype=indexed_dataset.DType.optimal_dtype(len(tokenizer))
        )
        for document, lengths, _ in encoded:
            builder.add_document(document["text"], lengths["text"])
    builder.finalize(f"{prefix}_text_document.idx")
    pool.close()
    pool.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
