"""The layers that Megatron-Bridge's own models are made of, in plain PyTorch under TransformerEngine's names.

AutoBridge finds parameters by those names, and how to split them by the class's. For tests only.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear

_GPU_KERNELS = (
    "apply_rope_fusion", "masked_softmax_fusion", "bias_dropout_fusion", "bias_activation_fusion",
    "gradient_accumulation_fusion", "persist_layer_norm", "cross_entropy_loss_fusion",
)  # fmt: skip


class TELayerNormColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]
    """A linear layer with the RMS norm before it."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, **keywords: Any) -> None:
        super().__init__(input_size, output_size, config=config, **keywords)
        self._epsilon = config.layernorm_epsilon
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))

    def forward(self, hidden: Any, *more: Any, **keywords: Any) -> Any:
        normed = torch.nn.functional.rms_norm(
            hidden, (hidden.shape[-1],), self.layer_norm_weight, self._epsilon
        )
        return super().forward(normed, *more, **keywords)


def layer_spec(config: Any) -> Any:
    """What ``gpt_provider.default_layer_spec`` gives on a GPU, for a model with RMS norms."""
    specs: Any = importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
    identity: Any = importlib.import_module("megatron.core.transformer.identity_op").IdentityOp
    spec = specs.get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = identity
    spec.submodules.self_attention.submodules.linear_qkv = TELayerNormColumnParallelLinear
    spec.submodules.mlp.submodules.linear_fc1 = TELayerNormColumnParallelLinear
    return spec


def install() -> None:
    """Have every model that would take TransformerEngine's layers take these."""
    provider: Any = importlib.import_module("megatron.bridge.models.gpt_provider")
    finalize = provider.GPTModelProvider.finalize

    def on_cpu(self: Any) -> None:
        if self.transformer_layer_spec in (provider.default_layer_spec, layer_spec):
            self.transformer_layer_spec = layer_spec
            for name in _GPU_KERNELS:
                setattr(self, name, False)
        finalize(self)

    provider.GPTModelProvider.finalize = on_cpu
