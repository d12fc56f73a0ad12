"""Whether a training config fits its GPUs: does its parallelism divide them, does the model fit in memory.

Read from the config alone, so that it can be said before anything is spent. Two ways of writing parallelism
are known: Megatron-Bridge's ``model`` section and NeMo-RL's ``policy.megatron_cfg``, itself or among
``overrides``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GB = 1e9
# What the CUDA context, NCCL's buffers and fragmentation take on each GPU.
OVERHEAD_GB = 4.0
GPU_MEMORY_GB: Mapping[str, int] = {
    "A100": 40, "A100-80GB": 80, "A10G": 24, "B200": 180, "B300": 270, "GB200": 186, "GH200": 96, "H100": 80,
    "H200": 141, "L4": 24, "L40S": 48, "RTX4090": 24, "T4": 16, "V100": 16, "V100-32GB": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A known architecture. ``experts`` counts the parameters in experts, of ``parameters`` in all;
    ``activation`` is bytes kept per token, layer and hidden channel for the backward pass, without
    recomputation and with flash attention: 34 for a dense layer (Korthikanti et al. 2022), more for a
    mixture of experts, whose tokens are copied to six of them."""

    parameters: float
    layers: int
    hidden: int
    vocabulary: int
    experts: float = 0.0
    activation: float = 34.0


# By the beginning of a recipe function's name; parameters as the models' cards give them.
MODELS: Mapping[str, Model] = {
    "nemotron_3_nano": Model(31.6e9, 52, 2688, 131_072, experts=29.4e9, activation=40.0),
    "llama32_1b": Model(1.24e9, 16, 2048, 128_256),
    "llama32_3b": Model(3.21e9, 28, 3072, 128_256),
    "llama31_8b": Model(8.03e9, 32, 4096, 128_256),
    "llama3_8b": Model(8.03e9, 32, 4096, 128_256),
    "qwen3_600m": Model(0.60e9, 28, 1024, 151_936),
    "qwen3_1p7b": Model(1.72e9, 28, 2048, 151_936),
    "qwen3_4b": Model(4.02e9, 36, 2560, 151_936),
    "qwen3_8b": Model(8.19e9, 36, 4096, 151_936),
}


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism. The GPUs left over hold copies."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1

    @property
    def size(self) -> int:
        return self.tensor * self.pipeline * self.context

    @property
    def expert_size(self) -> int:
        return self.expert * self.expert_tensor * self.pipeline

    def __str__(self) -> str:
        return f"TP {self.tensor} x PP {self.pipeline} x CP {self.context}"


def model_of(values: Mapping[str, Any]) -> tuple[str, Model] | None:
    """The architecture that a config's recipe function builds, when it is a known one."""
    function = recipe_of(values)
    known = [name for name in MODELS if function == name or function.startswith(f"{name}_")]
    name = max(known, key=len, default=None)
    return (name, MODELS[name]) if name else None


def recipe_of(values: Mapping[str, Any]) -> str:
    """``nemotron_3_nano_pretrain_config``, or nothing."""
    target = get(values, "recipe._target_")
    return target.rpartition(".")[2] if isinstance(target, str) else ""


def layout_of(values: Mapping[str, Any]) -> tuple[Layout, str] | None:
    """A config's parallelism and the section that says so; None where it says nothing."""
    for section in ("model", "policy.megatron_cfg", "overrides.policy.megatron_cfg"):
        table = get(values, section)
        if not isinstance(table, Mapping) or "tensor_model_parallel_size" not in table:
            continue
        keys = {
            "tensor": "tensor_model_parallel_size",
            "pipeline": "pipeline_model_parallel_size",
            "context": "context_parallel_size",
            "expert": "expert_model_parallel_size",
            "expert_tensor": "expert_tensor_parallel_size",
        }
        degrees = {name: table.get(key) or 1 for name, key in keys.items()}
        if all(type(degree) is int and degree >= 1 for degree in degrees.values()):
            return Layout(**degrees), section
    return None


def divides(values: Mapping[str, Any], gpus: int) -> list[tuple[str, str]]:
    """Key and message of every way in which the parallelism does not go into ``gpus`` GPUs."""
    found = layout_of(values)
    if found is None or gpus < 1:
        return []
    layout, section = found
    gpus = _training(values, section, gpus)
    key = f"{section}.tensor_model_parallel_size"
    problems = []
    if gpus % layout.size:
        problems.append((key, f"{layout} = {layout.size} does not divide {gpus} GPUs"))
    if gpus % layout.expert_size:
        problems.append(
            (
                f"{section}.expert_model_parallel_size",
                f"EP x ETP x PP = {layout.expert_size} does not divide {gpus} GPUs",
            )
        )
    whole, micro = get(values, "train.global_batch_size"), get(values, "train.micro_batch_size") or 1
    if not problems and isinstance(whole, int) and isinstance(micro, int):
        copies = gpus // layout.size
        if whole % (micro * copies):
            message = f"{whole} is not a multiple of micro batch {micro} x {copies} copies of the model"
            problems.append(("train.global_batch_size", message))
    return problems


def _training(values: Mapping[str, Any], section: str, gpus: int) -> int:
    """The GPUs that train. A NeMo-RL config keeps nodes for generation that is not colocated, and for the
    models of its NeMo Gym environments; on a single node they share its GPUs."""
    base, found, _ = section.partition("policy.megatron_cfg")
    if not found:
        return gpus
    per_node = get(values, f"{base}cluster.gpus_per_node")
    generation = get(values, f"{base}policy.generation.colocated")
    nodes = get(values, f"{base}env.nemo_gym.num_gpu_nodes") or 0
    if isinstance(generation, Mapping) and generation.get("enabled") is False:
        nodes += get(generation, "resources.num_nodes") or 0
    kept = nodes * per_node if isinstance(nodes, int) and isinstance(per_node, int) else 0
    return gpus - kept if kept < gpus else gpus


def memory_gb(values: Mapping[str, Any], gpus: int) -> float | None:
    """An estimate of one GPU's memory in GB (1e9 bytes); None for a model or a layout that is not known.

    Weights and gradients of the GPU's share; optimizer states, shared among copies; activations of one
    micro batch; logits; overhead. Some 20 % either way.
    """
    model, found = model_of(values), layout_of(values)
    if model is None or found is None or divides(values, gpus):
        return None
    layout, _ = found
    known = model[1]
    dense = (known.parameters - known.experts) / (layout.tensor * layout.pipeline)
    experts = known.experts / layout.expert_size
    if "_peft_" in recipe_of(values):  # frozen weights, small adapters
        states = 2 * (dense + experts) * 1.02
    else:
        exact_gradients = get(values, "ddp.grad_reduce_in_fp32") is not False
        small_moments = get(values, "optimizer.use_precision_aware_optimizer") is True
        kept = 4 + (4 if small_moments and get(values, "optimizer.exp_avg_dtype") == "bfloat16" else 8)
        copies = gpus / (layout.tensor * layout.pipeline)
        expert_copies = gpus / layout.expert_size
        states = (2 + (4 if exact_gradients else 2)) * (dense + experts)
        states += kept * (dense / copies + experts / expert_copies)
    length = get(values, "model.seq_length")
    length = length if isinstance(length, int) else 4096  # of the data, which is not known yet
    tokens = length * (get(values, "train.micro_batch_size") or 1) / layout.context
    share = layout.tensor if get(values, "model.sequence_parallel") else 1
    activations = tokens * known.hidden * known.layers / layout.pipeline * known.activation / share
    if get(values, "model.recompute_granularity") == "full":
        activations /= 8
    logits = tokens * known.vocabulary / layout.tensor * 6
    return (states + activations + logits) / GB + OVERHEAD_GB


def checkpoint_gb(values: Mapping[str, Any]) -> float | None:
    """The size of one full checkpoint: weights in 16 bits, three more copies in 32. None when not known."""
    model = model_of(values)
    if model is None:
        return None
    return model[1].parameters * (0.3 if "_peft_" in recipe_of(values) else 14) / GB


def get(values: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key, None when there is none."""
    node: Any = values
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
