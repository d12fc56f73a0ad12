# /// script
# requires-python = ">=3.10"
#
# [tool.runspec]
# schema = "1"
# name = "nano3/model/export-rl"
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
# disk_gb = 800
# spot = true
#
# [tool.nemo_sky.inputs]
# model = "art://nano3-rl-model"
#
# [tool.nemo_sky.output]
# name = "nano3-rl-hf"
# type = "model"
# ///
"""The model that GRPO trained as a Hugging Face folder: what evaluation and serving read."""

from __future__ import annotations

from recipes.bridge.common import run
from recipes.bridge.convert import export_model

if __name__ == "__main__":
    run(export_model)
