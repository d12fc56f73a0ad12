# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ray[data]==2.60.0",
#     "tokenizers>=0.22",
#     "numpy>=1.26",
#     "pyarrow>=17",
#     "huggingface_hub>=0.30",
#     "pyyaml>=6",
# ]
#
# [tool.runspec]
# schema = "1"
# name = "dense/data/prep/pretrain"
#
# [tool.runspec.run]
# launch = "ray"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
#
# [tool.nemo_sky]
# disk_gb = 200
# spot = true
# config_keys = ["splits.valid", "splits.test", "seed", "on_bad", "shards"]
#
# [tool.nemo_sky.output]
# name = "dense-pretrain-data"
# type = "pretrain-data"
# ///
"""Tokenise a blend of text into Megatron's bin/idx.

    python recipes/dense/data/prep/pretrain/prep.py --config FILE

The settings are those of recipes/prep/pretrain.py.
"""

from __future__ import annotations

from recipes.bridge.common import run
from recipes.prep.pretrain import prepare

if __name__ == "__main__":
    run(prepare)
