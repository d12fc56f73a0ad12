"""Faults that cost whole runs, each by a name: what ``nemo-sky check`` looks for in every config, and
``nemo-sky render --all --check`` in every task.

All twelve were found in a widely used cookbook's own default configs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher import fit
from launcher.runspec import Runspec

NAMES: Mapping[str, str] = {
    "internal-image": "the image is in a registry that outsiders cannot read",
    "private-path": "a path of somebody's own machine or cluster",
    "geometry": "the model's shape is changed under a recipe that is made for another",
    "placeholder": "a value that was meant to be filled in, or an input that nothing reads",
    "parallelism": "the parallelism does not divide the GPUs; validation data is the training data",
    "broken-chain": "an artifact that no stage makes, or one of another architecture",
    "unordered": "it starts from a model without saying which stage makes it: nothing makes it wait",
    "resources": "the task asks for other nodes or GPUs than the recipe",
    "no-resume": "it saves in one place and loads from another, so that it starts over when preempted",
    "forced-tracker": "a tracker is switched on that the user may not have",
    "version-bound": "it works with one release of its library only",
    "checkpoint-churn": "checkpoints too many or too large for the disk, or never deleted",
    "memory": "the model does not fit into the GPUs' memory",
}
_INTERNAL = re.compile(r"nvcr\.io/nvidian/|gitlab-master|\burm\.|artifactory\.[\w-]+\.internal")
_PRIVATE = re.compile(r"^(/lustre|/home|/Users|/scratch|/gpfs|/mnt/[\w-]+/users|/fsx)\b")
_PLACEHOLDER = re.compile(
    r"/path/to\b|^<[\w .-]+>$|\bCHANGE_?ME\b|\bYOUR[_-][A-Z_]+\b|\byour[_-](bucket|name|path|entity)\b"
)
# In a list, `<think>` is a word of a model's language.
_TAG, _ITEM = re.compile(r"^<[a-z_]+>$"), re.compile(r"\.\d+$")
_INPUT = re.compile(r"\$\{\s*art:\s*([\w-]+)|\$NEMO_SKY_INPUTS/([\w-]+)")
_GEOMETRY = {
    "num_layers": "layers", "hidden_size": "hidden", "ffn_hidden_size": None,
    "num_attention_heads": None, "num_query_groups": None, "num_moe_experts": None,
    "moe_router_topk": None, "hybrid_override_pattern": None,
}  # fmt: skip
_TRACKERS = (
    "logger.wandb_project", "logger.wandb_entity", "logger.mlflow_tracking_uri", "logger.wandb_enabled",
    "logger.swanlab_enabled",
)  # fmt: skip
_STARTS_FROM = ("model_path", "initial_checkpoint", "checkpoint.pretrained_checkpoint")
# Saving a model this large takes minutes and hundreds of GB.
_LARGE_PARAMETERS, _LEAST_INTERVAL, _SHORT_RUN = 5e9, 50, 100


@dataclass(frozen=True)
class Fault:
    """One fault; ``key`` is the dotted key of the config where it stands, empty for the script."""

    name: str
    key: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


def of_config(spec: Runspec, values: Mapping[str, Any], gpus: int | None) -> list[Fault]:
    """The faults of one composed config; ``gpus`` in all, None when the node decides."""
    return [
        *_of_texts(spec, values),
        *_of_model(spec, values, gpus),
        *_of_checkpoints(spec, values),
        *_of_inputs(spec, values),
        *_of_library(values),
    ]


def of_families(stages: Sequence[tuple[Runspec, str, Mapping[str, Any]]]) -> list[tuple[Runspec, str, Fault]]:
    """What is wrong between stages: each with its configs, as (recipe, config's name, values)."""
    producers: dict[str, Runspec] = {}
    models: dict[tuple[str, str], str] = {}
    for spec, config, values in stages:
        if spec.sky.output:
            producers[spec.sky.output.name] = spec
            if model := fit.model_of(values):
                models[spec.sky.output.name, config] = model[0]
    found = _unread(stages)
    for spec, config, values in stages:
        for name, text in spec.sky.inputs.items():
            artifact = text.removeprefix("art://").partition(":")[0]
            own = text.startswith(f"art://{spec.family}-")
            if own and artifact not in producers:
                fault = Fault("broken-chain", "", f"input {name}: no stage makes {artifact!r}")
                found.append((spec, config, fault))
                continue
            mine, theirs = fit.model_of(values), models.get((artifact, config))
            if mine and theirs and mine[0] != theirs:
                detail = f"input {name}: {artifact!r} of config {config!r} is {theirs}, but this is {mine[0]}"
                found.append((spec, config, Fault("broken-chain", "recipe._target_", detail)))
    return found


def _unread(
    stages: Sequence[tuple[Runspec, str, Mapping[str, Any]]],
) -> list[tuple[Runspec, str, Fault]]:
    """Inputs that no config of their stage reads. A stage that reads none at all finds them by itself."""
    read: dict[str, set[str]] = {}
    for spec, _, values in stages:
        texts = [text for _, text in _leaves(values) if isinstance(text, str)]
        read.setdefault(spec.name, set()).update(name for text in texts for name in _inputs_in(text))
    found = []
    for spec in {spec.name: spec for spec, _, _ in stages}.values():
        for name in spec.sky.inputs:
            if read[spec.name] and name not in read[spec.name]:
                fault = Fault("placeholder", "", f"the input {name!r} is declared, but no config reads it")
                found.append((spec, spec.config.default, fault))
    return found


def of_task(spec: Runspec, task: Mapping[str, Any]) -> list[Fault]:
    """Whether a task asks for what its recipe needs."""
    found = []
    nodes = task.get("num_nodes", 1)
    if nodes != spec.resources.nodes:
        found.append(Fault("resources", "", f"{nodes} nodes, but the recipe needs {spec.resources.nodes}"))
    gpus, wanted = spec.resources.gpus_per_node, (task.get("resources") or {}).get("accelerators")
    if isinstance(gpus, int) and _gpu_counts(wanted) != ({gpus} if gpus else set()):
        found.append(Fault("resources", "", f"GPUs {wanted}, but the recipe needs {gpus} on each node"))
    return found


def _gpu_counts(accelerators: Any) -> set[int]:
    """How many GPUs the alternatives of a task are: ``H100:8``, ``H100`` (one), or a list of them."""
    listed = [accelerators] if isinstance(accelerators, str) else accelerators or []
    return {int(item.partition(":")[2] or 1) for item in listed}


def _of_texts(spec: Runspec, values: Mapping[str, Any]) -> Iterator[Fault]:
    if spec.image and _INTERNAL.search(spec.image):
        yield Fault("internal-image", "", f"image {spec.image!r} is not public")
    for key, value in _leaves(values):
        if not isinstance(value, str):
            continue
        if _INTERNAL.search(value):
            yield Fault("internal-image", key, f"{value!r} is not public")
        elif _PRIVATE.search(value):
            yield Fault("private-path", key, f"{value!r} is a path of one machine")
        elif _PLACEHOLDER.search(value) and not (_TAG.search(value) and _ITEM.search(key)):
            yield Fault("placeholder", key, f"{value!r} was meant to be filled in")


def _of_model(spec: Runspec, values: Mapping[str, Any], gpus: int | None) -> Iterator[Fault]:
    model = fit.model_of(values)
    for key, attribute in _GEOMETRY.items():
        value = fit.get(values, f"model.{key}")
        if model and value is not None and (attribute is None or value != getattr(model[1], attribute)):
            yield Fault(
                "geometry", f"model.{key}", f"{key} {value!r} is not {model[0]}'s: leave it to the recipe"
            )
    for key, message in fit.divides(values, gpus) if gpus else ():
        yield Fault("parallelism", key, message)
    for base in ("", "overrides."):
        data, cluster = fit.get(values, f"{base}data"), fit.get(values, f"{base}cluster")
        if isinstance(data, Mapping):
            train, valid = data.get("train_jsonl_fpath"), data.get("validation_jsonl_fpath")
            if train is not None and train == valid:
                yield Fault(
                    "parallelism", f"{base}data.validation_jsonl_fpath", "validation is on training data"
                )
        if isinstance(cluster, Mapping) and gpus:
            said = (cluster.get("num_nodes") or 1) * (cluster.get("gpus_per_node") or 0)
            if said != gpus:
                detail = f"the config is for {said} GPUs, the stage has {gpus}"
                yield Fault("parallelism", f"{base}cluster.num_nodes", detail)
    memory = fit.memory_gb(values, gpus) if gpus else None
    limits = [fit.GPU_MEMORY_GB[kind] for kind in spec.sky.accelerator if kind in fit.GPU_MEMORY_GB]
    if memory and limits and memory > min(limits):
        kind = min(spec.sky.accelerator, key=lambda item: fit.GPU_MEMORY_GB.get(item, 10**6))
        detail = f"about {memory:.0f} GB on each GPU, but {kind} has {min(limits)} GB"
        yield Fault("memory", "model.tensor_model_parallel_size", detail)


def _of_checkpoints(spec: Runspec, values: Mapping[str, Any]) -> Iterator[Fault]:
    save, load = fit.get(values, "checkpoint.save"), fit.get(values, "checkpoint.load")
    if save is not None and save != load:
        yield Fault("no-resume", "checkpoint.save", f"checkpoint.load is {load!r}, not {save!r}")
    size, interval = fit.checkpoint_gb(values), fit.get(values, "checkpoint.save_interval")
    if size is None or save is None:
        return
    keep = fit.get(values, "checkpoint.most_recent_k")
    if not isinstance(keep, int) or keep < 1:
        detail = f"checkpoints of {size:,.0f} GB are never deleted: set checkpoint.most_recent_k"
        yield Fault("checkpoint-churn", "checkpoint.save", detail)
        return
    steps = fit.get(values, "train.train_iters")
    model = fit.model_of(values)
    large = model is not None and model[1].parameters > _LARGE_PARAMETERS
    short = isinstance(steps, int) and steps <= _SHORT_RUN
    if large and not short and isinstance(interval, int) and interval < _LEAST_INTERVAL:
        detail = f"{size:,.0f} GB every {interval} steps"
        yield Fault("checkpoint-churn", "checkpoint.save_interval", detail)
    needed = size * (keep + 1) / spec.resources.nodes
    if spec.sky.disk_gb and needed > spec.sky.disk_gb:
        detail = f"{keep} + 1 checkpoints need {needed:,.0f} GB on each node; it has {spec.sky.disk_gb} GB"
        yield Fault("checkpoint-churn", "checkpoint.most_recent_k", detail)


def _of_inputs(spec: Runspec, values: Mapping[str, Any]) -> Iterator[Fault]:
    for key in _STARTS_FROM:
        value = fit.get(values, key)
        if value and not spec.sky.inputs:
            yield Fault("unordered", key, f"{key} is {value!r}, and [tool.nemo_sky.inputs] names no input")


def _inputs_in(text: str) -> list[str]:
    return [field or path for field, path in _INPUT.findall(text)]


def _of_library(values: Mapping[str, Any]) -> Iterator[Fault]:
    for key in _TRACKERS:
        if value := fit.get(values, key):
            yield Fault("forced-tracker", key, f"{key} is {value!r} for everybody who runs this")
    recipe = values.get("recipe")
    if isinstance(recipe, Mapping) and "_target_" in recipe:
        function = fit.recipe_of(values)
        if function.endswith("_finetune_config"):
            detail = f"{function} is in Megatron-Bridge 0.3.0 only: write ..._sft_config or ..._peft_config"
            yield Fault("version-bound", "recipe._target_", detail)
        for key in recipe:
            if key not in ("_target_", "peft_scheme"):
                detail = f"recipe functions take {key!r} in Megatron-Bridge 0.3.0 only: set the field itself"
                yield Fault("version-bound", f"recipe.{key}", detail)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{key}.{number}" if key else str(number))
    else:
        yield key, value
