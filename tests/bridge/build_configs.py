"""Build and validate configs with the real Megatron-Bridge, offline. Runs in Bridge's own environment.

    build_configs.py CASES.json RESULTS.json

Each case is ``{name, config, kind, gpus}``: a composed config, ``pretrain`` or ``finetune``, and how many
GPUs it is for. Its result is null, or what was wrong. Recipes that ask the Hugging Face hub for a model get
that model's ``config.json`` from ``tests/bridge/hf``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main() -> None:
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.bridge import stubs

    stubs.install()
    _use_local_models()
    cases: list[dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text())
    results = {case["name"]: built(case) for case in cases}
    Path(sys.argv[2]).write_text(json.dumps(results, indent=1))


def built(case: dict[str, Any]) -> dict[str, Any]:
    """What became of a case: an error, or the facts that the launcher's estimate rests on."""
    from recipes.bridge import train

    os.environ["WORLD_SIZE"] = str(case["gpus"])
    try:
        config = train.build(case["config"], case["kind"])
        # Kernels of TransformerEngine, which is a stub here; nothing of a config's shape.
        config.model.moe_permute_fusion = False
        config.model.apply_rope_fusion = False
        if getattr(config.model, "moe_token_dispatcher_type", None) == "flex":
            config.model.moe_token_dispatcher_type = "alltoall"
            config.model.moe_flex_dispatcher_backend = None
        config.validate()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip()}"}
    return {
        "error": None,
        "layers": config.model.num_layers,
        "hidden": config.model.hidden_size,
        "data_parallel": config.data_parallel_size,
        "iterations": config.train.train_iters,
        "save": config.checkpoint.save,
        "load": config.checkpoint.load,
        "keep": config.checkpoint.most_recent_k,
        "wandb": config.logger.wandb_project,
        "mlflow": config.logger.mlflow_experiment,
    }


def _use_local_models() -> None:
    from megatron.bridge import AutoBridge

    original: Any = AutoBridge.from_hf_pretrained.__func__

    def local(cls: Any, path: Any, /, **kwargs: Any) -> Any:
        folder = HERE / "hf" / str(path).rpartition("/")[2]
        if not folder.is_dir():
            return original(cls, path, **kwargs)
        from transformers import AutoConfig

        return cls.from_hf_config(AutoConfig.from_pretrained(folder))

    AutoBridge.from_hf_pretrained = classmethod(local)


if __name__ == "__main__":
    main()
