# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "megatron-core==0.16.1", "psutil>=7", "tokenizers>=0.22", "pyarrow>=17", "pyyaml>=6",
# ]
#
# [tool.runspec]
# schema = "1"
# name = "tiny/sft"
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
# data = "art://tiny-sft-data"
# model = "art://tiny-pretrain-model"
#
# [tool.nemo_sky.output]
# name = "tiny-sft-model"
# type = "model"
# ///
"""Fine-tune the pretrained model on packed instruction pairs; only answers count in the loss.

    torchrun --nproc-per-node 2 recipes/tiny/sft/train.py --config FILE

It resumes and stops as pretraining does; the last checkpoint is the output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from recipes.tiny import checkpoint, loop, model, packing, parallel, tokenizer
from recipes.tiny.output import write_metadata
from recipes.tiny.settings import load, require, run


@dataclass(frozen=True)
class Settings:
    """``data`` has ``splits/`` of rows of ``pack_size`` tokens, ``model`` a checkpoint to start from."""

    data: Path
    model: Path
    pack_size: int
    checkpoints: Path
    train: loop.TrainSettings
    parallel: parallel.ParallelSettings = field(default_factory=parallel.ParallelSettings)


def main(config: Path) -> None:
    stop = parallel.StopRequest()
    settings = load(Settings, config)
    train, tensor = settings.train, settings.parallel.tensor
    parallel.check(settings.parallel)
    loop.check(train, tensor)
    base = checkpoint.find(settings.model, "model")
    description = checkpoint.describe(base)
    model.check(description.model, tensor)
    words = settings.data / checkpoint.TOKENIZER
    encoder = tokenizer.load(words)
    words_in_data, words_in_model = encoder.get_vocab_size(), description.vocab_size
    require(
        words_in_data == words_in_model,
        f"data has a vocabulary of {words_in_data} tokens, model one of {words_in_model}",
    )
    pad = encoder.token_to_id(tokenizer.PAD)
    splits = {
        name: packing.read(settings.data / "splits" / name, settings.pack_size, pad)
        for name in ("train", "valid")
    }
    data = packing.Packed(splits["train"], splits["valid"], train.seed)
    with parallel.connect(settings.parallel) as place:
        gpt = model.build(description.model, description.vocab_size, tensor, train.seed)
        checkpoint.load_weights(base, gpt)
        loop.say(place, f"{len(data.train_rows):,} packed rows; weights from {base}")

        def save(gpt: object, optimizer: object, state: checkpoint.State) -> Path:
            return checkpoint.save(settings.checkpoints, gpt, optimizer, state, place, description, words)

        state = loop.fit(gpt, data, train, place, settings.checkpoints, save, stop)
        if state is not None and place.leads:
            print(f"validation loss {state.valid_loss:.4f} nats per answer token", flush=True)
            write_metadata(checkpoint.metadata(state, description, {}))


if __name__ == "__main__":
    run(main)
