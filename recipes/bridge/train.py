"""One training stage on Megatron-Bridge, from its plain YAML to its last checkpoint.

recipe:  {_target_: ..., ...}    the recipe function and what to call it with
data:    null | {path: ...}      what to train on
model_path: ...                  the checkpoint to start from (SFT and LoRA)
mlflow:  true | false            the library's own logger, where $MLFLOW_TRACKING_URI names a server
and any section of Bridge's ``ConfigContainer``: train, model, optimizer, checkpoint, ...
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.bridge import checkpoints, data, gate, overrides
from recipes.bridge.common import require, several_nodes, work_dir, write_metadata
from recipes.bridge.watch import Watch

OWN_SECTIONS = ("recipe", "data", "model_path", "mlflow")


def pretrain(settings: dict[str, Any]) -> None:
    """Train from scratch, or on from the newest checkpoint."""
    _train(settings, "pretrain")


def finetune(settings: dict[str, Any]) -> None:
    """Train on from ``model_path``, or from the newest checkpoint of this run."""
    _train(settings, "finetune")


def build(settings: Mapping[str, Any], kind: str) -> Any:
    """The validated-to-be ``ConfigContainer`` of a stage. Raises ConfigError for anything wrong in it."""
    recipe = gate.find(dict(settings.get("recipe") or {}))
    if recipe.note:
        _say(recipe.note)
    config = recipe.build()
    sections = {key: value for key, value in settings.items() if key not in OWN_SECTIONS}
    folder = data.folder_of(settings.get("data"))
    if kind == "finetune":
        # Lengths and parallelism decide how the data is read: they come first.
        overrides.apply(config, {"model": sections.get("model") or {}})
        data.use_instructions(config, folder, sections.get("dataset") or {})
        model = settings.get("model_path")
        require(model, "model_path: fine-tuning starts from a checkpoint; give its folder")
        config.checkpoint.pretrained_checkpoint = str(
            checkpoints.shelve(Path(str(model)), work_dir() / "base")
        )
    overrides.apply(config, sections)
    if kind == "pretrain":
        data.use_blend(config, folder)
    check(config)
    _use_mlflow(config, bool(settings.get("mlflow", True)))
    return config


def check(config: Any) -> None:
    """Raises ConfigError for what Bridge would not notice, or only on the hundredth GPU-hour."""
    saved, loaded = config.checkpoint.save, config.checkpoint.load
    require(saved, "checkpoint.save must name a folder")
    require(
        saved == loaded, f"checkpoint.load ({loaded}) is not checkpoint.save ({saved}): it would not resume"
    )
    require(
        config.train.exit_signal_handler, "train.exit_signal_handler must be true: SIGTERM saves a checkpoint"
    )
    require(
        config.checkpoint.fully_parallel_save or not several_nodes(),
        "checkpoint.fully_parallel_save must be true on several nodes: each must save a share",
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    model = config.model
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    context = model.context_parallel_size
    size = tensor * pipeline * context
    named = f"TP {tensor} x PP {pipeline} x CP {context}"
    require(world % size == 0, f"{named} = {size} does not divide {world} GPUs")
    experts = (
        getattr(model, "expert_model_parallel_size", 1)
        * (getattr(model, "expert_tensor_parallel_size", None) or tensor)
        * pipeline
    )
    require(
        not getattr(model, "num_moe_experts", None) or world % experts == 0,
        f"EP x ETP x PP = {experts} does not divide {world} GPUs",
    )
    batch = config.train.micro_batch_size * (world // size)
    require(
        config.train.global_batch_size % batch == 0,
        f"train.global_batch_size {config.train.global_batch_size} is not a multiple of micro batch "
        f"{config.train.micro_batch_size} x data parallel {world // size}",
    )


def _train(settings: dict[str, Any], kind: str) -> None:
    started = time.monotonic()
    config = build(settings, kind)
    folder = Path(config.checkpoint.save)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        step = checkpoints.prepare_resume(folder)
        _say("starting afresh" if step is None else f"resuming at step {step}")
    from megatron.bridge.training.gpt_step import forward_step

    checkpoints.hold_back_tracker()
    rank = int(os.environ.get("RANK", "0"))
    watch = Watch(folder, rank, config.logger.log_interval, config.checkpoint.most_recent_k)
    try:
        gate.trainer(kind)(config, forward_step, callbacks=[watch.callback()])
    finally:
        # Also after SIGTERM, when Bridge saves and calls sys.exit(0).
        watch.announce()
    if rank == 0:
        write_metadata(_describe(config, watch, time.monotonic() - started))


def _describe(config: Any, watch: Watch, seconds: float) -> dict[str, Any]:
    """The model artifact's metadata; a run that had nothing left to do has the step of its checkpoint."""
    step = watch.step or int(config.train.train_iters)
    return {
        "step": step,
        "final_loss": watch.loss,
        "valid_loss": watch.valid_loss,
        "total_tokens": step * config.train.global_batch_size * config.model.seq_length,
        "elapsed_sec": round(seconds, 3),
        "tokenizer_uri": str(config.tokenizer.tokenizer_model or config.tokenizer.tokenizer_type),
    }


def _use_mlflow(config: Any, wanted: bool) -> None:
    """The library's own MLflow logger, if a server is named and it need not upload checkpoints to it.

    nemo-sky records metrics and lineage without it; this adds Bridge's own curves and parameters.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    logger = config.logger
    if not wanted or logger.mlflow_experiment or not uri.startswith(("http://", "https://")):
        if gate.can_silence_mlflow_uploads(logger):
            logger.mlflow_log_artifacts = False
        return
    if not gate.can_silence_mlflow_uploads(logger):
        _say("mlflow: off, since this Bridge (before 0.5.0) would upload every checkpoint to the server")
        return
    logger.mlflow_log_artifacts = False
    logger.mlflow_tracking_uri = uri
    logger.mlflow_experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "megatron-bridge")
    logger.mlflow_run_name = os.environ.get("NEMO_SKY_RUN_ID", "bridge")
    logger.mlflow_tags = {"nemo_sky.run_id": logger.mlflow_run_name}


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)
