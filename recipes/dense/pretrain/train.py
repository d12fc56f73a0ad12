# /// script
# requires-python = ">=3.10"
#
# [tool.runspec]
# schema = "1"
# name = "dense/pretrain"
# image = "nvcr.io/nvidia/nemo:25.11.nemotron_3_nano"
#
# [tool.runspec.run]
# launch = "torchrun"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 8
#
# [tool.nemo_sky]
# accelerator = "H100"
# min_gpu_memory_gb = 80
# disk_gb = 500
# spot = true
# checkpoint_dir = "checkpoints"
# config_keys = [
#     "recipe.*", "train.micro_batch_size", "train.exit_interval", "train.exit_duration_in_mins",
#     "model.recompute_granularity", "model.recompute_method", "model.recompute_num_layers",
#     "model.recompute_modules", "model.virtual_pipeline_model_parallel_size",
#     "optimizer.weight_decay", "optimizer.clip_grad",
#     "scheduler.lr_decay_style", "scheduler.lr_decay_iters", "checkpoint.async_save", "rng.seed",
#     "logger.log_throughput", "profiling.*",
# ]
#
# [tool.nemo_sky.inputs]
# data = "art://dense-pretrain-data"
#
# [tool.nemo_sky.output]
# name = "dense-pretrain-model"
# type = "model"
# ///
"""Pretrain a dense model of 0.6 to 8 billion parameters: Llama 3.1 and 3.2, or Qwen3.

    torchrun ... recipes/dense/pretrain/train.py --config FILE

The learning path of docs/dense.md; one node of 8 GPUs, and one GPU for the small ones.
"""

from __future__ import annotations

from recipes.bridge.common import run
from recipes.bridge.train import pretrain

if __name__ == "__main__":
    run(pretrain)
