"""The model: Megatron-Core's GPT in the shape of Llama, on any device.

RMSNorm, SwiGLU, rotary positions, grouped-query attention, tied embeddings, no biases. Attention in plain
torch goes in through Megatron's own specs, so that it runs where there is no CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipes.tiny.settings import require


@dataclass(frozen=True)
class ModelSettings:
    """``heads`` of ``hidden / heads`` channels; ``kv_heads`` of them hold keys and values.

    ``init_std`` is the spread of the first weights; about ``hidden ** -0.5`` suits a narrow model.
    """

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 384
    seq_length: int = 256
    rope_base: int = 10_000
    norm_eps: float = 1e-5
    init_std: float = 0.02


# The vocabulary is padded to this, so that a checkpoint loads at any tensor parallelism that divides it.
VOCAB_MULTIPLE = 128


def padded_vocab(vocab_size: int) -> int:
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def parameters(model: ModelSettings, vocab_size: int) -> int:
    """How many weights the model has, padding of the vocabulary included."""
    channels = model.hidden // model.heads
    attention = model.hidden * channels * (2 * model.heads + 2 * model.kv_heads)
    layer = attention + 3 * model.hidden * model.ffn + 2 * model.hidden
    return padded_vocab(vocab_size) * model.hidden + model.layers * layer + model.hidden


def check(model: ModelSettings, tensor: int) -> None:
    """Raises ConfigError for a shape that cannot be built, or not over ``tensor`` ranks."""
    for name in ("layers", "hidden", "heads", "kv_heads", "ffn", "rope_base"):
        require(getattr(model, name) >= 1, f"model.{name} must be at least 1, not {getattr(model, name)}")
    require(model.seq_length >= 2, f"model.seq_length must be at least 2, not {model.seq_length}")
    require(
        model.hidden % (2 * model.heads) == 0,
        f"model.hidden {model.hidden} is not an even number of channels for each of {model.heads} heads",
    )
    require(
        model.heads % model.kv_heads == 0,
        f"model.kv_heads {model.kv_heads} does not divide model.heads {model.heads}",
    )
    divisible = {"heads": model.heads, "kv_heads": model.kv_heads, "ffn": model.ffn}
    for name, value in divisible.items():
        require(value % tensor == 0, f"parallel.tensor {tensor} does not divide model.{name} {value}")
    require(
        VOCAB_MULTIPLE % tensor == 0,
        f"parallel.tensor {tensor} does not divide the vocabulary, which is padded to {VOCAB_MULTIPLE}s",
    )


def build(model: ModelSettings, vocab_size: int, tensor: int, seed: int) -> Any:
    """A ``GPTModel`` in float32 on CPU, its weights the same for a seed at any tensor parallelism.

    Megatron's parallel groups must be up. ``model(tokens, position_ids, mask, labels=...)`` gives the loss of
    each token, shape (batch, sequence); without labels the logits, (batch, sequence, vocabulary / tensor).
    ``mask`` is None for plain causal attention, or true where attention is forbidden,
    (batch, 1, sequence, sequence).
    """
    import torch
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    # Each rank builds the whole weight from the seed and keeps its slice.
    torch.manual_seed(seed)
    config = TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        ffn_hidden_size=model.ffn,
        tensor_model_parallel_size=tensor,
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        init_method_std=model.init_std,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        # The fused kernels exist for CUDA only.
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = _plain_attention()
    return GPTModel(
        config,
        spec,
        vocab_size=padded_vocab(vocab_size),
        max_sequence_length=model.seq_length,
        position_embedding_type="rope",
        rotary_base=model.rope_base,
        share_embeddings_and_output_weights=True,
    )


def _plain_attention() -> type[Any]:
    """Attention in plain torch with the interface of Megatron's own, whose mask is made on CUDA only
    (``dot_product_attention.py:217`` of Megatron-Core 0.16.1)."""
    import torch
    from megatron.core.transformer.module import MegatronModule

    class PlainAttention(MegatronModule):  # type: ignore[misc]
        """``core_attention`` as torch's scaled dot-product attention."""

        def __init__(
            self,
            config: Any,
            layer_number: int,
            attn_mask_type: Any,
            attention_type: str,
            attention_dropout: float | None = None,
            softmax_scale: float | None = None,
            cp_comm_type: str | None = None,
            pg_collection: Any = None,
        ) -> None:
            super().__init__(config)
            self.scale = softmax_scale

        def forward(
            self,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            attn_mask_type: Any = None,
            attention_bias: Any = None,
            packed_seq_params: Any = None,
        ) -> torch.Tensor:
            """(sequence, batch, heads, channels) in, (sequence, batch, heads * channels) out."""
            length, batch, heads, channels = query.shape
            q, k, v = (item.permute(1, 2, 0, 3) for item in (query, key, value))
            allowed = None if attention_mask is None else ~attention_mask
            out = torch.nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=allowed,
                is_causal=allowed is None,
                scale=self.scale,
                enable_gqa=k.shape[1] != heads,
            )
            return out.permute(2, 0, 1, 3).reshape(length, batch, heads * channels)

    return PlainAttention
