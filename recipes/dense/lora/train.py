# /// script
# requires-python = ">=3.10"
#
# [tool.runspec]
# schema = "1"
# name = "dense/lora"
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
# disk_gb = 300
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
# data = "art://dense-sft-data"
# model = "art://dense-pretrain-model"
#
# [tool.nemo_sky.output]
# name = "dense-lora-model"
# type = "model"
# ///
"""LoRA: train small adapters beside the frozen weights of a dense model.

torchrun ... recipes/dense/lora/train.py --config FILE
"""

from __future__ import annotations

from recipes.bridge.common import run
from recipes.bridge.train import finetune

if __name__ == "__main__":
    run(finetune)
