# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ray[data]==2.60.0",
#     "transformers>=4.50",
#     "jinja2>=3.1",
#     "numpy>=1.26",
#     "pyarrow>=17",
#     "huggingface_hub>=0.30",
#     "pyyaml>=6",
# ]
#
# [tool.runspec]
# schema = "1"
# name = "dense/data/prep/sft"
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
# name = "dense-sft-data"
# type = "sft-data"
# ///
"""Tokenise and pack chats, with a loss mask on what the assistant says.

    python recipes/dense/data/prep/sft/prep.py --config FILE

The settings are those of recipes/prep/sft.py.
"""

from __future__ import annotations

from recipes.bridge.common import run
from recipes.prep.sft import prepare

if __name__ == "__main__":
    run(prepare)
