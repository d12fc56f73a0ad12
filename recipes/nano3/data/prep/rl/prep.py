# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ray[data]==2.60.0",
#     "numpy>=1.26",
#     "pyarrow>=17",
#     "huggingface_hub>=0.30",
#     "pyyaml>=6",
# ]
#
# [tool.runspec]
# schema = "1"
# name = "nano3/data/prep/rl"
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
# name = "nano3-rl-data"
# type = "rl-data"
# ///
"""Blend prompts for GRPO into JSONL.

    python recipes/nano3/data/prep/rl/prep.py --config FILE

The settings are those of recipes/prep/rl.py.
"""

from __future__ import annotations

from recipes.bridge.common import run
from recipes.prep.rl import prepare

if __name__ == "__main__":
    run(prepare)
