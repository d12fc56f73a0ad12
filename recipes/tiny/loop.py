"""The training loop that pretraining and SFT share, top to bottom.

Each step takes one global batch. The loss is the mean over all tokens that count in it, whatever the number
of ranks, so that a run continues unchanged at another parallelism.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from recipes.tiny import checkpoint
from recipes.tiny.output import log_metrics
from recipes.tiny.parallel import Parallel, StopRequest, world_size
from recipes.tiny.settings import require

if TYPE_CHECKING:
    import torch

    Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class TrainSettings:
    """Batch sizes count sequences, intervals steps; ``lr`` falls along a cosine to ``min_lr``.

    ``clip_norm`` bounds the norm of the gradient. ``eval_samples`` is how many held-out sequences an
    evaluation reads.
    """

    steps: int
    global_batch_size: int
    micro_batch_size: int
    lr: float
    min_lr: float
    warmup_steps: int
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 1234
    log_interval: int = 10
    eval_interval: int = 100
    eval_samples: int = 64
    save_interval: int = 50


class Data(Protocol):
    """Sequences by number: any number for training, ``valid`` as many as there are."""

    def train(self, index: int) -> Batch: ...

    def valid(self, index: int) -> Batch: ...

    @property
    def valid_samples(self) -> int: ...

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """One micro-batch: tokens, labels, loss_mask, position_ids, each (batch, sequence); and, where
        attention is not plainly causal, attention_mask (batch, 1, sequence, sequence), true is forbidden."""
        ...


def check(train: TrainSettings, tensor: int) -> None:
    """Raises ConfigError for settings that no run could use."""
    positive = ("steps", "global_batch_size", "micro_batch_size", "log_interval", "eval_interval")
    for name in (*positive, "eval_samples", "save_interval"):
        require(getattr(train, name) >= 1, f"train.{name} must be at least 1, not {getattr(train, name)}")
    require(train.lr > 0, f"train.lr must be more than 0, not {train.lr}")
    require(0 <= train.min_lr <= train.lr, f"train.min_lr must lie in 0..train.lr, not {train.min_lr}")
    require(
        0 <= train.warmup_steps < train.steps,
        f"train.warmup_steps must lie in 0..train.steps - 1, not {train.warmup_steps}",
    )
    data = world_size() // tensor
    require(
        train.global_batch_size % (train.micro_batch_size * data) == 0,
        f"train.global_batch_size {train.global_batch_size} is no multiple of train.micro_batch_size "
        f"{train.micro_batch_size} times {data} data-parallel ranks",
    )


def learning_rate(step: int, train: TrainSettings) -> float:
    """The rate of the update number ``step``, from 0: linear up, then a cosine down to ``min_lr``."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    share = (step - train.warmup_steps) / max(1, train.steps - 1 - train.warmup_steps)
    return train.min_lr + (train.lr - train.min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def fit(
    gpt: Any,
    data: Data,
    train: TrainSettings,
    parallel: Parallel,
    checkpoints: Path,
    save_as: Callable[[Any, Any, checkpoint.State], Path],
    stop: StopRequest,
) -> checkpoint.State | None:
    """Train ``gpt`` to ``train.steps``, from the newest checkpoint when there is one.

    ``save_as(gpt, optimizer, state)`` saves a checkpoint. Returns the final state, which is saved; None when
    a stop was asked for and the state is saved for another attempt.
    """
    import torch

    gpt = gpt.to(parallel.device)
    optimizer = make_optimizer(gpt, train)
    state = checkpoint.resume(checkpoints, gpt, optimizer, parallel)
    if state.step:
        say(parallel, f"resumed at step {state.step} of {train.steps} from {checkpoints}")
    saved = state.step
    network = gpt
    if parallel.data > 1:
        network = torch.nn.parallel.DistributedDataParallel(
            gpt, process_group=parallel.data_group, gradient_as_bucket_view=True
        )
    log = Log(parallel, train, state)
    while state.step < train.steps:
        micro_batches = list(micro_batches_of(data, state.samples, train, parallel))
        tokens, stopping = agree(micro_batches, stop.wanted, parallel)
        if stopping:
            if state.step > saved:
                save_as(gpt, optimizer, state)
            say(parallel, f"stopped on request at step {state.step}, saved")
            return None
        rate = learning_rate(state.step, train)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = backward(network, micro_batches, tokens, parallel)
        norm = clip(gpt, train.clip_norm, parallel)
        optimizer.step()
        optimizer.zero_grad()
        state.step += 1
        state.samples += train.global_batch_size
        state.tokens += tokens
        state.last_loss = loss
        log.step(loss, rate, norm, tokens)
        last = state.step == train.steps
        if last or state.step % train.eval_interval == 0:
            state.valid_loss = evaluate(gpt, data, train, parallel)
            log.evaluation()
        if last or state.step % train.save_interval == 0:
            started = time.monotonic()
            target = save_as(gpt, optimizer, state)
            saved = state.step
            say(parallel, f"saved {target.name} in {time.monotonic() - started:.2f} s")
            log.resume_clock()
    return state


def make_optimizer(gpt: Any, train: TrainSettings) -> Any:
    """AdamW; norms' weights do not decay."""
    import torch

    matrices = [parameter for parameter in gpt.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in gpt.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.lr, betas=(0.9, 0.95))


def micro_batches_of(
    data: Data, first: int, train: TrainSettings, parallel: Parallel
) -> Iterator[dict[str, torch.Tensor]]:
    """This rank's share of the global batch that begins at sample ``first``."""
    size = train.micro_batch_size
    for start in range(first, first + train.global_batch_size, size * parallel.data):
        own = start + parallel.data_rank * size
        batch = data.collate([data.train(index) for index in range(own, own + size)])
        yield {key: value.to(parallel.device) for key, value in batch.items()}


def agree(batches: Sequence[Batch], stop: bool, parallel: Parallel) -> tuple[int, bool]:
    """How many tokens count in the whole global batch, and whether any rank was asked to stop.

    One small all-reduce: ranks that stopped at different steps would wait for each other for ever.
    """
    import torch
    import torch.distributed as dist

    tokens = sum(float(batch["loss_mask"].sum()) for batch in batches)
    facts = torch.tensor([tokens, float(stop)], dtype=torch.float64, device=parallel.device)
    dist.all_reduce(facts)
    return round(facts[0].item() / parallel.tensor), bool(facts[1].item() > 0)


def backward(network: Any, batches: Sequence[Batch], tokens: int, parallel: Parallel) -> float:
    """Leave the gradient of the mean loss over ``tokens`` in the parameters; returns that loss."""
    import torch
    import torch.distributed as dist

    total = torch.zeros((), dtype=torch.float64, device=parallel.device)
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        # Gradients travel once per step, with the last micro-batch.
        with nullcontext() if last or parallel.data == 1 else network.no_sync():
            loss = loss_sum(network, batch)
            # DistributedDataParallel takes the mean over ranks where a sum is meant.
            torch.autograd.backward(loss * (parallel.data / max(tokens, 1)))
        total += loss.detach().double()
    dist.all_reduce(total, group=parallel.data_group)
    return float(total) / max(tokens, 1)


def loss_sum(network: Any, batch: Batch) -> torch.Tensor:
    """The loss summed over the tokens that count."""
    losses: torch.Tensor = network(
        batch["tokens"], batch["position_ids"], batch.get("attention_mask"), labels=batch["labels"]
    )
    return (losses.float() * batch["loss_mask"]).sum()


def clip(gpt: Any, bound: float, parallel: Parallel) -> float:
    """Scale gradients so that the whole model's norm is at most ``bound``; returns the norm before."""
    import torch
    import torch.distributed as dist

    squares = torch.zeros((), device=parallel.device)
    for parameter in gpt.parameters():
        # A weight that every tensor-parallel rank holds whole counts once.
        if getattr(parameter, "tensor_model_parallel", False) or parallel.tensor_rank == 0:
            squares += parameter.grad.float().pow(2).sum()
    dist.all_reduce(squares, group=parallel.tensor_group)
    norm = float(squares.sqrt())
    scale = min(1.0, bound / (norm + 1e-6))
    if scale < 1.0:
        for parameter in gpt.parameters():
            parameter.grad.mul_(scale)
    return norm


def evaluate(gpt: Any, data: Data, train: TrainSettings, parallel: Parallel) -> float:
    """Mean loss per counted token over the first ``eval_samples`` held-out sequences."""
    import torch
    import torch.distributed as dist

    count = min(train.eval_samples, data.valid_samples)
    own = range(parallel.data_rank, count, parallel.data)
    totals = torch.zeros(2, dtype=torch.float64, device=parallel.device)
    gpt.eval()
    with torch.no_grad():
        for start in range(0, len(own), train.micro_batch_size):
            picked = own[start : start + train.micro_batch_size]
            batch = data.collate([data.valid(index) for index in picked])
            batch = {key: value.to(parallel.device) for key, value in batch.items()}
            totals[0] += loss_sum(gpt, batch).double()
            totals[1] += batch["loss_mask"].sum().double()
    gpt.train()
    dist.all_reduce(totals, group=parallel.data_group)
    return float(totals[0] / totals[1].clamp(min=1))


class Log:
    """A line and a set of metrics per ``log_interval``, by rank 0; keeps the state's elapsed time too."""

    def __init__(self, parallel: Parallel, train: TrainSettings, state: checkpoint.State) -> None:
        self._parallel, self._train, self._state = parallel, train, state
        self._before = state.elapsed
        self._started = time.monotonic()
        self.resume_clock()

    def resume_clock(self) -> None:
        """Begin a new interval: what was not training does not count as slow training."""
        self._since, self._steps, self._tokens = time.monotonic(), 0, 0

    def step(self, loss: float, rate: float, norm: float, tokens: int) -> None:
        state, now = self._state, time.monotonic()
        state.elapsed = self._before + now - self._started
        self._steps += 1
        self._tokens += tokens
        if state.step % self._train.log_interval and state.step != self._train.steps:
            return
        seconds = max(now - self._since, 1e-9)
        per_second, memory = self._tokens / seconds, memory_mb(self._parallel)
        milliseconds = 1000 * seconds / self._steps
        say(
            self._parallel,
            f"step {state.step:>5}/{self._train.steps}  loss {loss:.4f}  lr {rate:.2e}  grad {norm:.2f}  "
            f"{per_second:,.0f} tokens/s  {milliseconds:.0f} ms/step  {memory:.0f} MB",
        )
        if self._parallel.leads:
            values = {"loss": loss, "lr": rate, "grad_norm": norm, "tokens_per_second": per_second}
            values["total_tokens"] = state.tokens
            log_metrics(state.step, {**values, "step_ms": milliseconds, "memory_mb": memory})
        self.resume_clock()

    def evaluation(self) -> None:
        state = self._state
        loss = state.valid_loss or 0.0
        say(self._parallel, f"step {state.step:>5}/{self._train.steps}  validation loss {loss:.4f}")
        if self._parallel.leads:
            log_metrics(state.step, {"valid_loss": loss})
        self.resume_clock()


def memory_mb(parallel: Parallel) -> float:
    """Memory of this rank in MB: the GPU's peak, or what the process holds."""
    import torch

    if parallel.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def say(parallel: Parallel, text: str) -> None:
    if parallel.leads:
        print(text, flush=True)
