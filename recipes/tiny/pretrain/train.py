# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "megatron-core==0.16.1", "psutil>=7", "tokenizers>=0.22", "pyyaml>=6",
# ]
#
# [tool.runspec]
# schema = "1"
# name = "tiny/pretrain"
#
# [tool.runspec.run]
# launch = "torchrun"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
#
# [tool.runspec.env]
# OMP_NUM_THREADS = "1"
#
# [tool.nemo_sky]
# procs_per_node = 2
# checkpoint_dir = "checkpoints"
# spot = true
#
# [tool.nemo_sky.inputs]
# data = "art://tiny-pretrain-data"
#
# [tool.nemo_sky.output]
# name = "tiny-pretrain-model"
# type = "model"
# ///
"""Pretrain a small GPT with Megatron-Core: on CPU over gloo, or unchanged on GPUs.

    torchrun --nproc-per-node 2 recipes/tiny/pretrain/train.py --config FILE

It resumes at the newest checkpoint of ``checkpoints``, also at another tensor or data parallelism, and on
SIGTERM saves and ends. The last checkpoint is the output.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from recipes.tiny import checkpoint, corpus, loop, model, parallel, tokenizer
from recipes.tiny.output import write_metadata
from recipes.tiny.settings import load, require, run


@dataclass(frozen=True)
class Settings:
    """``data`` is a folder with ``blend.json`` and ``tokenizer/``, None for Megatron's mock data."""

    checkpoints: Path
    cache: Path
    train: loop.TrainSettings
    data: Path | None = None
    model: model.ModelSettings = field(default_factory=model.ModelSettings)
    parallel: parallel.ParallelSettings = field(default_factory=parallel.ParallelSettings)


def main(config: Path) -> None:
    stop = parallel.StopRequest()
    settings = load(Settings, config)
    parallel.check(settings.parallel)
    model.check(settings.model, settings.parallel.tensor)
    loop.check(settings.train, settings.parallel.tensor)
    words, ids = vocabulary(settings.data)
    train = settings.train
    parallel.quiet_megatron()
    with parallel.alone():
        data = corpus.open_corpus(
            settings.data,
            ids,
            seq_length=settings.model.seq_length,
            samples=train.steps * train.global_batch_size,
            eval_samples=train.eval_samples,
            seed=train.seed,
            cache=settings.cache / f"rank-{os.environ.get('RANK', '0')}",
        )
    with parallel.connect(settings.parallel) as place:
        entropy = corpus.unigram_entropy(settings.data) if settings.data and place.leads else None
        if entropy is not None:
            print(f"unigram entropy of the data: {entropy:.4f} nats per token", flush=True)
        gpt = model.build(settings.model, ids.vocab_size, settings.parallel.tensor, train.seed)
        description = checkpoint.Description(settings.model, ids.vocab_size)

        def save(gpt: object, optimizer: object, state: checkpoint.State) -> Path:
            return checkpoint.save(settings.checkpoints, gpt, optimizer, state, place, description, words)

        state = loop.fit(gpt, data, train, place, settings.checkpoints, save, stop)
        if state is not None and place.leads:
            extra = {}
            if entropy is not None:
                extra["unigram_entropy"] = entropy
                print(
                    f"validation loss {state.valid_loss:.4f} vs unigram entropy {entropy:.4f} nats",
                    flush=True,
                )
            write_metadata(checkpoint.metadata(state, description, extra))


def vocabulary(data: Path | None) -> tuple[Path | None, corpus.Ids]:
    """The data's tokenizer folder and its special ids. Raises ConfigError when it has none."""
    if data is None:
        return None, corpus.Ids(corpus.MOCK_VOCAB, eod=0, pad=-1)
    folder = data / checkpoint.TOKENIZER
    encoder = tokenizer.load(folder)
    eod, pad = encoder.token_to_id(tokenizer.EOD), encoder.token_to_id(tokenizer.PAD)
    require(eod != pad, f"{folder}: the end of a document and padding are the same token")
    return folder, corpus.Ids(encoder.get_vocab_size(), eod=eod, pad=pad)


if __name__ == "__main__":
    run(main)
