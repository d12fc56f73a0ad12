"""A checkpoint of ours as a Hugging Face Llama: the same function, other names.

Megatron keeps queries, keys and values of each group side by side in one matrix, and the two halves of
SwiGLU in another; Llama keeps them apart. The shards are read by torch itself, whatever tensor parallelism
wrote them, so that neither Megatron nor a process group is needed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.tiny import checkpoint
from recipes.tiny.model import ModelSettings
from recipes.tiny.settings import ConfigError

if TYPE_CHECKING:
    import torch

    Weights = dict[str, torch.Tensor]


def to_llama(folder: Path) -> Any:
    """The checkpoint in ``folder`` as a ``LlamaForCausalLM`` in float32, without the vocabulary's padding.

    Raises ConfigError when ``folder`` holds no checkpoint of ours.
    """
    from transformers import LlamaForCausalLM

    from recipes.tiny import tokenizer

    description = checkpoint.describe(folder)
    encoder = tokenizer.load(folder / checkpoint.TOKENIZER)
    eod, pad = encoder.token_to_id(tokenizer.EOD), encoder.token_to_id(tokenizer.PAD)
    llama = LlamaForCausalLM(llama_config(description, eod=eod, pad=pad))
    weights = rename(read_weights(folder), description.model, description.vocab_size)
    llama.load_state_dict(weights)
    return llama.eval()


def llama_config(description: checkpoint.Description, *, eod: int, pad: int) -> Any:
    """The ``LlamaConfig`` of the same shape; ``eod`` and ``pad`` are token ids."""
    from transformers import LlamaConfig

    model = description.model
    return LlamaConfig(
        vocab_size=description.vocab_size,
        hidden_size=model.hidden,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.seq_length,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": float(model.rope_base)},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=None,
        eos_token_id=eod,
        pad_token_id=pad,
    )


def read_weights(folder: Path) -> Weights:
    """The model's weights of a distributed checkpoint, whole, by Megatron's names; layers are stacked.

    Raises ConfigError when torch cannot read it.
    """
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(folder)
    try:
        stored = reader.read_metadata().state_dict_metadata
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no distributed checkpoint: {error}") from None
    weights = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in stored.items()
        if isinstance(item, TensorStorageMetadata) and not name.startswith("optimizer.")
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        load(weights, storage_reader=reader, no_dist=True)
    return weights


def rename(weights: Weights, model: ModelSettings, vocab_size: int) -> Weights:
    """Megatron's weights under Llama's names."""
    embedding = weights["embedding.word_embeddings.weight"][:vocab_size]
    result = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": embedding,
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
    }
    channels = model.hidden // model.heads
    per_group = model.heads // model.kv_heads
    for layer in range(model.layers):
        here = {
            name.removeprefix("decoder.layers."): value[layer]
            for name, value in weights.items()
            if name.startswith("decoder.layers.")
        }
        to = f"model.layers.{layer}."
        # (groups, queries of the group + key + value, channels, hidden)
        qkv = here["self_attention.linear_qkv.weight"]
        qkv = qkv.reshape(model.kv_heads, per_group + 2, channels, model.hidden)
        gate, up = here["mlp.linear_fc1.weight"].chunk(2)
        result |= {
            f"{to}self_attn.q_proj.weight": qkv[:, :per_group].reshape(-1, model.hidden),
            f"{to}self_attn.k_proj.weight": qkv[:, per_group].reshape(-1, model.hidden),
            f"{to}self_attn.v_proj.weight": qkv[:, per_group + 1].reshape(-1, model.hidden),
            f"{to}self_attn.o_proj.weight": here["self_attention.linear_proj.weight"],
            f"{to}mlp.gate_proj.weight": gate,
            f"{to}mlp.up_proj.weight": up,
            f"{to}mlp.down_proj.weight": here["mlp.linear_fc2.weight"],
            f"{to}input_layernorm.weight": here["self_attention.linear_qkv.layer_norm_weight"],
            f"{to}post_attention_layernorm.weight": here["mlp.linear_fc1.layer_norm_weight"],
        }
    return result
