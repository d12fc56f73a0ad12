"""How long a stage will take: from its config, or from what earlier runs of it measured.

    hours = 6 x active parameters x tokens / (peak FLOP/s of a GPU x MFU x GPUs)

Six floating-point operations per parameter and token: two forward, four backward (Kaplan et al. 2020); four
in all where the weights are frozen. Attention over the sequence and evaluations are left out; the MFU makes
up for them. An earlier run of the same config is better than any formula, and comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher import fit
from launcher.errors import UserError

# Dense BF16 (V100, T4: FP16) tensor-core TFLOP/s of one GPU without sparsity, as NVIDIA's data sheets say.
PEAK_TFLOPS: Mapping[str, float] = {
    "A100": 312, "A10G": 70, "B200": 2250, "B300": 2250, "GB200": 2500, "GH200": 989, "H100": 989,
    "H100-NVL": 835, "H100-PCIE": 756, "H200": 989, "L4": 121, "L40S": 362, "RTX4090": 165, "T4": 65,
    "V100": 125,
}  # fmt: skip
# Somewhat below what NVIDIA publishes for H100 and BF16: 0.39 for Llama 3 70B, 0.33 for Nemotron 3 Nano
# (docs.nvidia.com/nemo/automodel, performance summary).
MFU = 0.35
MFU_OF_EXPERTS = 0.25
# Parameters that work on a token, where not all do; as the model's card says.
ACTIVE: Mapping[str, float] = {"nemotron_3_nano": 3.6e9}
ASSUMED_SPREAD = 0.3
MEASURED_SPREAD = 0.1
"""Standard deviation of the logarithm of the duration: how far an estimate may be off."""
STEPS = ("train.train_iters", "train.steps")
LENGTHS = ("model.seq_length", "dataset.seq_length", "pack_size")


@dataclass(frozen=True)
class Past:
    """What an earlier run measured: ``tokens_per_second`` of all its GPUs (None without), and the ``hours``
    it took for its ``steps`` (None unless it succeeded, and unless its config says them). ``gpu`` is None for
    a run without GPUs. ``launcher.money.past`` finds them."""

    run_id: str
    gpu: str | None
    gpus: int
    nodes: int
    tokens_per_second: float | None
    hours: float | None
    steps: int | None = None


@dataclass(frozen=True)
class Work:
    """What there is to do. ``tokens``, ``steps`` and ``flops`` per token are None where the config does not
    say, and ``unmade`` is true where an input that is not made yet will. ``left`` is the share that a
    checkpoint leaves to do, None where nobody knows which."""

    tokens: float | None = None
    flops: float | None = None
    experts: bool = False
    mfu: float | None = None
    hours: float | None = None
    past: tuple[Past, ...] = ()
    unmade: bool = False
    steps: int | None = None
    left: float | None = 1.0


@dataclass(frozen=True)
class Estimate:
    """Hours of work without set-up; None is unknown. ``source`` says in words how it was got, ``spread`` is
    the standard deviation of its logarithm."""

    hours: float | None
    source: str
    spread: float = ASSUMED_SPREAD

    @property
    def high(self) -> float | None:
        """What 19 of 20 runs stay below."""
        return None if self.hours is None else self.hours * math.exp(1.645 * self.spread)


def work_of(
    values: Mapping[str, Any],
    *,
    mfu: float | None = None,
    hours: float | None = None,
    past: Sequence[Past] = (),
) -> Work:
    """What a stage's config asks for. ``mfu`` and ``hours`` are a person's own word, and win.

    Raises UserError for an MFU that is not above 0 and at most 1.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g}: it is a share of the GPUs' peak, above 0 and at most 1")
    known = fit.model_of(values)
    flops, experts = None, False
    if known:
        name, model = known
        frozen = "_peft_" in fit.recipe_of(values)
        flops = (4 if frozen else 6) * ACTIVE.get(name, model.parameters)
        experts = model.experts > 0
    lengths = [fit.get(values, key) for key in LENGTHS]
    unmade = any(isinstance(length, str) and length.startswith("${art:") for length in lengths)
    return Work(tokens_of(values), flops, experts, mfu, hours, tuple(past), unmade, steps_of(values))


def steps_of(values: Mapping[str, Any]) -> int | None:
    """Steps of a training config, of Megatron-Bridge's and of the tiny family's keys; None without them."""
    return _first(values, *STEPS)


def from_step(work: Work, step: int | None) -> Work:
    """The work that is left after the checkpoint ``step``; None is no checkpoint."""
    if step is None:
        return work
    return replace(work, left=max(1 - step / work.steps, 0.0) if work.steps else None)


def tokens_of(values: Mapping[str, Any]) -> float | None:
    """Tokens that a training config goes through: steps x sequences x length, of Megatron-Bridge's and of
    the tiny family's keys. None where one of them is missing or not known yet."""
    steps = steps_of(values)
    batch = _first(values, "train.global_batch_size")
    length = _first(values, *LENGTHS)
    if steps is None or batch is None or length is None:
        return None
    return steps * batch * length


def estimate(work: Work, gpu: str | None, gpus: int, nodes: int, instance: str = "") -> Estimate:
    """How long what is left of ``work`` takes on ``gpus`` GPUs (of all nodes) of type ``gpu``."""
    whole = _whole(work, gpu, gpus, nodes, instance)
    if whole.hours is None or work.left == 1:
        return whole
    if work.left is None:
        return Estimate(None, "a checkpoint is there, but the config does not say of how many steps")
    source = f"{whole.source}; {work.left:.0%} of it is left"
    return replace(whole, hours=whole.hours * work.left, source=source)


def _whole(work: Work, gpu: str | None, gpus: int, nodes: int, instance: str) -> Estimate:
    if work.hours is not None:
        return Estimate(work.hours, "as you said", MEASURED_SPREAD)
    for one in work.past:
        same = (one.gpu or "").lower() == (gpu or "").lower()
        if not same or (gpu is None and one.nodes != nodes):
            continue
        if work.tokens and one.tokens_per_second:
            speed = one.tokens_per_second * (gpus / one.gpus if gpu and one.gpus else 1.0)
            scaled = f", scaled from {one.gpus} GPUs" if gpu and one.gpus != gpus else ""
            source = f"run {one.run_id}: {one.tokens_per_second:,.0f} tokens/s{scaled}"
            return Estimate(work.tokens / speed / 3600, source, MEASURED_SPREAD)
        if one.hours and (one.gpus, one.nodes) == (gpus, nodes):
            if one.steps == work.steps or not (one.steps and work.steps):
                return Estimate(one.hours, f"run {one.run_id} took as long", MEASURED_SPREAD)
            source = f"run {one.run_id} took {one.hours:.3g} h for {one.steps:,} of {work.steps:,} steps"
            return Estimate(one.hours * work.steps / one.steps, source, MEASURED_SPREAD)
    if gpu is None or work.tokens is None or work.flops is None:
        return Estimate(None, _why_not(work, gpu))
    peak = peak_tflops(gpu, instance)
    if peak is None:
        return Estimate(None, f"the speed of {gpu} is not known here")
    mfu = work.mfu or (MFU_OF_EXPERTS if work.experts else MFU)
    seconds = work.flops * work.tokens / (peak * 1e12 * mfu * gpus)
    said = "given" if work.mfu else "assumed"
    source = (
        f"{work.flops:.3g} FLOP per token, {work.tokens:.3g} tokens, {gpus} {gpu} of {peak:g} TFLOP/s, "
        f"MFU {mfu:g} ({said})"
    )
    return Estimate(seconds / 3600, source)


def peak_tflops(gpu: str, instance: str = "") -> float | None:
    """Dense BF16 TFLOP/s. An H100 on a PCIe card is slower, and told by its name or its instance's."""
    name = f"{gpu} {instance}".upper()
    chip = gpu.upper().partition("-")[0]
    if chip == "H100":
        form = "PCIE" if "PCIE" in name else "NVL" if gpu.upper() == "H100-NVL" else ""
        return PEAK_TFLOPS[f"H100-{form}" if form else "H100"]
    return PEAK_TFLOPS.get(chip)


def _first(values: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = fit.get(values, key)
        if type(value) is int and value > 0:
            return value
    return None


def _why_not(work: Work, gpu: str | None) -> str:
    if gpu is None:
        return "no earlier run of this config; nothing is known of stages without GPUs"
    if work.tokens is None and work.unmade:
        return "no earlier run of this config, and the data that sets its sequence length is not made yet"
    what = "number of tokens" if work.tokens is None else "model"
    return f"no earlier run of this config, and its {what} is not known"
