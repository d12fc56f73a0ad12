# /// script
# requires-python = ">=3.10"
#
# [tool.runspec]
# schema = "1"
# name = "nano3/model/export"
# image = "nvcr.io/nvidia/nemo:25.11.nemotron_3_nano"
#
# [tool.runspec.run]
# launch = "direct"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 1
#
# [tool.nemo_sky]
# accelerator = "H100"
# disk_gb = 500
# spot = true
#
# [tool.nemo_sky.inputs]
# model = "art://nano3-sft-model"
#
# [tool.nemo_sky.output]
# name = "nano3-sft-hf"
# type = "model"
# ///
"""A Megatron checkpoint as a Hugging Face folder: what RL, evaluation and serving read.

`run.model=art://nano3-pretrain-model` exports another stage's model.
"""

from __future__ import annotations

from recipes.bridge.common import run
from recipes.bridge.convert import export_model

if __name__ == "__main__":
    run(export_model)
