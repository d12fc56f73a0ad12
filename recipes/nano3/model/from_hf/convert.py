# /// script
# requires-python = ">=3.10"
#
# [tool.runspec]
# schema = "1"
# name = "nano3/model/import"
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
# in_all = false   # training from scratch has no use for it
#
# [tool.nemo_sky.output]
# name = "nano3-base-model"
# type = "model"
# ///
"""NVIDIA's released weights, or any Hugging Face checkpoint of this architecture, as a Megatron checkpoint.

SFT starts from it with `run.model=art://nano3-base-model`. The weights pass through the CPU's memory; the GPU
is for the image's kernels.
"""

from __future__ import annotations

from recipes.bridge.common import run
from recipes.bridge.convert import import_model

if __name__ == "__main__":
    run(import_model)
