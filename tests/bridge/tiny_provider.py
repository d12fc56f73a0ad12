"""Recipe functions in the form of Megatron-Bridge 0.3.1's, for a model that a CPU trains in milliseconds."""

from __future__ import annotations

import os
import time
from typing import Any

VOCABULARY = 512
LENGTH = 64
STEP_S = "TINY_STEP_S"
"""A variable: the seconds that a step takes at least, for who wants to come in between."""


def tiny_pretrain_config() -> Any:
    """As ``nemotron_3_nano_pretrain_config``: no arguments, bin/idx or made-up data."""
    from megatron.bridge.training.config import GPTDatasetConfig

    dataset = GPTDatasetConfig(
        random_seed=1,
        reset_attention_mask=False,
        reset_position_ids=False,
        eod_mask_loss=False,
        seq_length=LENGTH,
        dataloader_type="single",
        num_workers=0,
        pin_memory=False,
    )
    return _config(dataset)


def tiny_sft_config() -> Any:
    """As ``nemotron_3_nano_sft_config``: no arguments, instructions."""
    from megatron.bridge.training.config import FinetuningDatasetConfig

    return _config(FinetuningDatasetConfig(seq_length=LENGTH))


def _config(dataset: Any) -> Any:
    import torch
    from megatron.bridge.models.gpt_provider import GPTModelProvider, local_layer_spec
    from megatron.bridge.training import config as bridge
    from megatron.core.distributed import DistributedDataParallelConfig
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    if step_s := float(os.environ.get(STEP_S, 0)):
        register_optimizer_step_pre_hook(lambda *_: time.sleep(step_s))
    model = GPTModelProvider(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        ffn_hidden_size=128,
        seq_length=LENGTH,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=True,
        make_vocab_size_divisible_by=128,
        use_cpu_initialization=True,
        transformer_layer_spec=local_layer_spec,
        transformer_impl="local",
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        bias_activation_fusion=False,
        cross_entropy_loss_fusion=False,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        bf16=False,
    )
    return bridge.ConfigContainer(
        train=bridge.TrainingConfig(
            train_iters=8, micro_batch_size=2, global_batch_size=4, eval_interval=100, eval_iters=0
        ),
        model=model,
        optimizer=bridge.OptimizerConfig(
            optimizer="adam",
            lr=3e-3,
            min_lr=3e-4,
            weight_decay=0.01,
            clip_grad=1.0,
            use_distributed_optimizer=False,
            bf16=False,
            params_dtype=torch.float32,
        ),
        scheduler=bridge.SchedulerConfig(
            lr_decay_style="cosine", lr_warmup_iters=1, start_weight_decay=0.01, end_weight_decay=0.01
        ),
        ddp=DistributedDataParallelConfig(
            use_distributed_optimizer=False,
            overlap_grad_reduce=False,
            grad_reduce_in_fp32=True,
            check_for_nan_in_grad=False,
        ),
        dataset=dataset,
        logger=bridge.LoggerConfig(log_interval=1, tensorboard_dir=None),
        tokenizer=bridge.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=VOCABULARY - 1),
        checkpoint=bridge.CheckpointConfig(save_interval=2, ckpt_format="torch_dist", async_save=False),
        dist=bridge.DistributedInitConfig(distributed_backend="gloo", use_gloo_process_groups=True),
        rng=bridge.RNGConfig(seed=1234),
        mixed_precision=None,
        comm_overlap=None,
    )
