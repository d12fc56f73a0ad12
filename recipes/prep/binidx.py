"""Megatron's bin/idx format, written straight from NumPy, without PyTorch.

``.bin`` holds the token ids of all documents, one after the other. ``.idx`` is, little-endian: the nine
bytes ``MMIDIDX\\0\\0``, version 1 (uint64), a code of the ids' type (uint8), the number of sequences and of
document boundaries (uint64 each), then sequence lengths (int32), byte offsets (int64) and the boundaries
(int64), as ``megatron/core/datasets/indexed_dataset.py`` reads them (0.16.1).
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from recipes.prep.shards import temporary

_MAGIC = b"MMIDIDX\x00\x00"
# uint16 holds the ids of a vocabulary up to this size; Megatron's own limit.
_UINT16_VOCABULARY = 65500
_CODES: dict[str, int] = {"int32": 4, "uint16": 8}


def id_type(vocabulary: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocabulary < _UINT16_VOCABULARY else np.int32)


class Writer:
    """One shard under temporary names; ``prefix`` is the final path without suffix."""

    def __init__(self, prefix: Path, vocabulary: int) -> None:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = temporary(prefix.with_name(f"{prefix.name}.bin"))
        self._idx = temporary(prefix.with_name(f"{prefix.name}.idx"))
        self._type = id_type(vocabulary)
        self._file = self._bin.open("wb", buffering=1 << 20)
        self._lengths = array("i")
        self._begun = 0
        self.tokens = 0

    @property
    def documents(self) -> int:
        return len(self._lengths)

    def extend(self, ids: list[int]) -> None:
        """Append to the document that is being written."""
        self._file.write(np.array(ids, dtype=self._type).tobytes())
        self._begun += len(ids)

    def end(self, token: int) -> bool:
        """End the document with ``token``. False, and no document, when nothing was written of it."""
        if not self._begun:
            return False
        self.extend([token])
        self._lengths.append(self._begun)
        self.tokens += self._begun
        self._begun = 0
        return True

    def finish(self) -> bool:
        """Write the index. False, and no files, when there was no document: Megatron cannot read those."""
        self._file.close()
        if not self._lengths:
            self._bin.unlink()
            return False
        lengths = np.array(self._lengths, dtype=np.int32)
        offsets = np.zeros(len(lengths), dtype=np.int64)
        np.cumsum(lengths[:-1].astype(np.int64) * self._type.itemsize, out=offsets[1:])
        with self._idx.open("wb") as index:
            index.write(_MAGIC)
            index.write(struct.pack("<QB", 1, _CODES[self._type.name]))
            index.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
            index.write(lengths.tobytes())
            index.write(offsets.tobytes())
            index.write(np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
        return True
