"""Instruction pairs packed into rows of one length, kept as Parquet, and read back for training.

A row holds whole conversations one after the other. ``loss_mask`` is 1 on the tokens of answers (their end
included), and ``seq_start_id`` says where each conversation begins: attention never crosses such a border,
so a conversation is read as if it stood alone (rotary positions are relative).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from recipes.tiny import tokenizer
from recipes.tiny.settings import ConfigError, require

if TYPE_CHECKING:
    import torch

# So many rows wait for a conversation that fits before the oldest is closed.
_OPEN_ROWS = 32


@dataclass(frozen=True)
class Example:
    """One conversation; ``mask`` is 1 where the loss counts."""

    tokens: list[int]
    mask: list[int]


@dataclass
class Pack:
    """One row being filled."""

    tokens: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def add(self, example: Example) -> None:
        self.starts.append(len(self.tokens))
        self.tokens += example.tokens
        self.mask += example.mask


def example(question: str, answer: str, encoder: Any) -> Example:
    """``<|user|>question<|assistant|>answer<|endoftext|>``; the encoder must take special tokens as text."""
    special = {token: encoder.token_to_id(token) for token in tokenizer.SPECIAL}

    def encode(words: str) -> list[int]:
        ids: list[int] = encoder.encode(words, add_special_tokens=False).ids
        return ids

    head = [special[tokenizer.USER], *encode(question), special[tokenizer.ASSISTANT]]
    tail = [*encode(answer), special[tokenizer.EOD]]
    return Example(head + tail, [0] * len(head) + [1] * len(tail))


def pack(examples: Sequence[Example], size: int) -> list[Pack]:
    """Rows of at most ``size`` tokens: each example goes into the first open row with room for it.

    No example may be longer than ``size``.
    """
    closed: list[Pack] = []
    waiting: list[Pack] = []
    for item in examples:
        row = next((row for row in waiting if len(row.tokens) + len(item.tokens) <= size), None)
        if row is None:
            if len(waiting) == _OPEN_ROWS:
                closed.append(waiting.pop(0))
            row = Pack()
            waiting.append(row)
        row.add(item)
    return closed + waiting


def write(packs: Sequence[Pack], folder: Path, rows_per_shard: int) -> int:
    """Write the rows as Parquet shards; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("loss_mask", pa.list_(pa.uint8())),
            ("seq_start_id", pa.list_(pa.int32())),
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(packs), rows_per_shard)
    for number, start in enumerate(starts):
        rows = packs[start : start + rows_per_shard]
        columns = [[r.tokens for r in rows], [r.mask for r in rows], [r.starts for r in rows]]
        arrays = [pa.array(column, type=kind) for column, kind in zip(columns, schema.types, strict=True)]
        pq.write_table(
            pa.Table.from_arrays(arrays, schema=schema),
            folder / f"shard_{number:06d}.parquet",
            compression="zstd",
        )
    return len(starts)


@dataclass(frozen=True)
class Rows:
    """Packed rows of one split, padded: tokens, mask and conversation number, each (rows, size)."""

    tokens: npt.NDArray[np.int64]
    mask: npt.NDArray[np.float32]
    owner: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)


def read(folder: Path, size: int, pad: int) -> Rows:
    """The rows of a split. Raises ConfigError when there are none, or one is longer than ``size``."""
    import pyarrow.parquet as pq

    files = sorted(folder.glob("*.parquet"))
    require(bool(files), f"data: there is no packed split in {folder}")
    found: list[Mapping[str, Any]] = []
    for file in files:
        try:
            found += pq.read_table(file, columns=["input_ids", "loss_mask", "seq_start_id"]).to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{file} is no shard of packed rows: {str(error).splitlines()[0]}") from None
    require(bool(found), f"data: {folder} has no rows")
    tokens = np.full((len(found), size), pad, dtype=np.int64)
    mask = np.zeros((len(found), size), dtype=np.float32)
    owner = np.full((len(found), size), -1, dtype=np.int32)
    for at, row in enumerate(found):
        length = len(row["input_ids"])
        require(length <= size, f"{folder}: a row has {length} tokens, pack_size is {size}")
        tokens[at, :length] = row["input_ids"]
        mask[at, :length] = row["loss_mask"]
        owner[at, :length] = np.searchsorted(row["seq_start_id"], np.arange(length), side="right")
    return Rows(tokens, mask, owner)


@dataclass(frozen=True)
class Packed:
    """Training and validation rows; see :class:`recipes.tiny.loop.Data`. Each epoch has its own order."""

    train_rows: Rows
    valid_rows: Rows
    seed: int

    @property
    def valid_samples(self) -> int:
        return len(self.valid_rows)

    def train(self, index: int) -> dict[str, torch.Tensor]:
        epoch, at = divmod(index, len(self.train_rows))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.train_rows))
        return sample(self.train_rows, int(order[at]))

    def valid(self, index: int) -> dict[str, torch.Tensor]:
        return sample(self.valid_rows, index)

    def collate(self, samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        import torch

        batch = {key: torch.stack([item[key] for item in samples]) for key in samples[0]}
        batch["attention_mask"] = forbidden(batch.pop("owner"))
        return batch


def sample(rows: Rows, at: int) -> dict[str, torch.Tensor]:
    """Row ``at``: labels are the next tokens, and the mask says which of *them* count."""
    import torch

    tokens = torch.from_numpy(rows.tokens[at])
    counts = torch.from_numpy(rows.mask[at]).roll(-1)
    counts[-1] = 0
    return {
        "tokens": tokens,
        "labels": tokens.roll(-1),
        "loss_mask": counts,
        "position_ids": torch.arange(len(tokens)),
        "owner": torch.from_numpy(rows.owner[at]),
    }


def forbidden(owner: torch.Tensor) -> torch.Tensor:
    """Where attention may not go, (batch, 1, size, size): ahead, and into other conversations."""
    import torch

    size = owner.shape[1]
    ahead = torch.ones(size, size, dtype=torch.bool).triu(1)
    return (ahead | (owner[:, :, None] != owner[:, None, :]))[:, None]
