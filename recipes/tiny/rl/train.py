# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "trl==1.16.0", "datasets>=4", "tokenizers>=0.22", "psutil>=7", "pyyaml>=6",
# ]
#
# [tool.runspec]
# schema = "1"
# name = "tiny/rl"
#
# [tool.runspec.run]
# launch = "direct"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
#
# [tool.runspec.env]
# OMP_NUM_THREADS = "1"
#
# [tool.nemo_sky]
# checkpoint_dir = "checkpoints"
# spot = true
#
# [tool.nemo_sky.inputs]
# data = "art://tiny-rl-data"
# model = "art://tiny-sft-model"
#
# [tool.nemo_sky.output]
# name = "tiny-rl-model"
# type = "model"
# ///
"""GRPO with TRL: answers to checkable questions are sampled, scored, and made more or less likely.

    python recipes/tiny/rl/train.py --config FILE

The SFT checkpoint is converted to a Hugging Face Llama first. Checkpoints are TRL's own, in folders of
Megatron's names; it resumes at the newest, and on SIGTERM saves and ends. The last is the output.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.tiny import arithmetic, checkpoint, convert, prompts
from recipes.tiny.output import log_metrics, write_metadata
from recipes.tiny.parallel import StopRequest
from recipes.tiny.settings import load, require, run


@dataclass(frozen=True)
class TrainSettings:
    """``batch_size`` counts sampled answers, of which ``generations`` belong to each prompt.

    ``kl`` weighs the distance from the SFT model.
    """

    steps: int
    batch_size: int
    generations: int
    max_tokens: int
    lr: float
    warmup_steps: int = 5
    temperature: float = 1.0
    kl: float = 0.0
    clip_norm: float = 1.0
    seed: int = 1234
    log_interval: int = 10
    save_interval: int = 50


@dataclass(frozen=True)
class Settings:
    """``data`` has ``train.jsonl`` and ``val.jsonl``, ``model`` an SFT checkpoint."""

    data: Path
    model: Path
    checkpoints: Path
    train: TrainSettings


def check(train: TrainSettings) -> None:
    """Raises ConfigError for settings that no run could use."""
    for name in ("steps", "batch_size", "max_tokens", "log_interval", "save_interval"):
        require(getattr(train, name) >= 1, f"train.{name} must be at least 1, not {getattr(train, name)}")
    require(train.generations >= 2, f"train.generations must be at least 2, not {train.generations}")
    require(
        train.batch_size % train.generations == 0,
        f"train.batch_size {train.batch_size} is no multiple of train.generations {train.generations}",
    )
    require(train.lr > 0, f"train.lr must be more than 0, not {train.lr}")
    require(train.temperature > 0, f"train.temperature must be more than 0, not {train.temperature}")


def main(config: Path) -> None:
    stop = StopRequest()
    settings = load(Settings, config)
    check(settings.train)
    base = checkpoint.find(settings.model, "model")
    train_rows = prompts.read(settings.data / "train.jsonl")
    val_rows = prompts.read(settings.data / "val.jsonl")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    encoder = AutoTokenizer.from_pretrained(base / checkpoint.TOKENIZER)
    llama = convert.to_llama(base)
    started = time.monotonic()
    before = prompts.accuracy(prompts.answers(llama, encoder, val_rows, settings.train.max_tokens), val_rows)
    print(f"validation accuracy before: {before:.3f} of {len(val_rows)} prompts", flush=True)
    trainer = make_trainer(settings, llama, encoder, train_rows, stop)
    newest = checkpoint.newest(settings.checkpoints)
    if newest is not None:
        print(f"resumed at step {newest} of {settings.train.steps}", flush=True)
    at = str(checkpoint.iteration_dir(settings.checkpoints, newest)) if newest else None
    trainer.train(resume_from_checkpoint=at)
    trainer.accelerator.end_training()
    if trainer.state.global_step < settings.train.steps:
        print(f"stopped on request at step {trainer.state.global_step}, saved", flush=True)
        return
    llama = trainer.model.eval()
    after = prompts.accuracy(prompts.answers(llama, encoder, val_rows, settings.train.max_tokens), val_rows)
    print(f"validation accuracy {after:.3f}, was {before:.3f} before RL", flush=True)
    log_metrics(settings.train.steps, {"val_accuracy": after})
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    write_metadata(
        {
            "step": settings.train.steps,
            "final_loss": float(losses[-1]) if losses else None,
            "parameters": sum(parameter.numel() for parameter in llama.parameters()),
            "elapsed_sec": round(time.monotonic() - started, 3),
            "tokenizer_uri": ".",
            "extra": {
                "val_accuracy": after,
                "val_accuracy_before": before,
                "reward": float(rewards[-1]) if rewards else 0.0,
            },
        }
    )


def rewards_of(completions: Sequence[str], answer: Sequence[str], **rest: Any) -> list[float]:
    """TRL's reward function: one score per sampled answer."""
    return [arithmetic.reward(given, wanted) for given, wanted in zip(completions, answer, strict=True)]


def make_trainer(
    settings: Settings, llama: Any, encoder: Any, rows: list[dict[str, str]], stop: StopRequest
) -> Any:
    """TRL's GRPO trainer, saving by our convention and ending at a stop request."""
    import torch
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    train = settings.train
    # The trainer writes here, on the checkpoints' own file system, and each is then renamed into place.
    scratch = settings.checkpoints / ".trl"
    shutil.rmtree(scratch, ignore_errors=True)
    arguments = GRPOConfig(
        output_dir=str(scratch),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=1,
        num_generations=train.generations,
        max_completion_length=train.max_tokens,
        learning_rate=train.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.clip_norm,
        temperature=train.temperature,
        beta=train.kl,
        seed=train.seed,
        logging_steps=train.log_interval,
        save_strategy="steps",
        save_steps=train.save_interval,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=llama,
        reward_funcs=rewards_of,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=encoder,
        callbacks=[make_callback(settings, stop)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def make_callback(settings: Settings, stop: StopRequest) -> Any:
    """Logs our way, commits what TRL has saved, and stops it when asked."""
    from transformers import TrainerCallback

    train = settings.train

    class Hooks(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.since, self.step = time.monotonic(), 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.since, self.step = time.monotonic(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if stop.wanted:
                control.should_save = control.should_training_stop = True

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any
        ) -> None:
            if not logs or "loss" not in logs:  # the closing summary has rewards left over, but no step
                return
            now, steps = time.monotonic(), max(1, state.global_step - self.step)
            seconds = (now - self.since) / steps
            self.since, self.step = now, state.global_step
            values = {
                "reward": float(logs["reward"]),
                "reward_std": float(logs["reward_std"]),
                "loss": float(logs["loss"]),
                "lr": float(logs["learning_rate"]),
                "answer_tokens": float(logs["completions/mean_length"]),
                "answers_per_second": train.batch_size / seconds,
                "step_ms": 1000 * seconds,
            }
            log_metrics(state.global_step, values)
            print(
                f"step {state.global_step:>5}/{train.steps}  reward {values['reward']:.4f}  "
                f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
                f"{values['answers_per_second']:,.0f} answers/s  {1000 * seconds:.0f} ms/step",
                flush=True,
            )

        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            target = checkpoint.iteration_dir(settings.checkpoints, state.global_step)
            shutil.rmtree(target, ignore_errors=True)  # what a killed attempt left behind
            written.rename(target)
            checkpoint.commit(settings.checkpoints, state.global_step)
            print(f"saved {target.name}", flush=True)

    return Hooks()


if __name__ == "__main__":
    run(main)
