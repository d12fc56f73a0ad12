"""Makes ``cuda`` mean ``cpu`` in this process, so that Megatron-Bridge's own training loop runs on a CPU.

For tests only: what it shows is that our scripts drive the real Bridge rightly, never how fast or how well
a GPU would train. It refuses to load on a machine with a GPU. Source lines are of Megatron-Bridge 0.3.1 and
Megatron-Core 0.16.1.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tests.bridge import stubs


def _is_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], torch.device("cpu"), *args[2:])
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str) and "cuda" not in result:
            # Compared with "torch.cuda.FloatTensor" in clip_grads.py:167 and optimizer.py:671.
            result = result.replace("torch.", "torch.cuda.", 1)
        return result


class _Stream:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class GpuFoundError(RuntimeError):
    """This machine has a GPU."""


def refuse_gpus() -> None:
    """Raises GpuFoundError where there is a GPU, also one that this build of PyTorch cannot use."""
    driver = shutil.which("nvidia-smi") or next(map(str, Path("/dev").glob("nvidia[0-9]*")), None)
    if driver or torch.cuda.is_available() or torch.cuda.device_count():
        raise GpuFoundError(
            f"the CPU shim is for machines without a GPU, where it would hide what the GPU does; "
            f"here is {driver or torch.cuda.get_device_name()}"
        )


def install() -> None:
    """Stub what is for GPUs only, and have the rest run on the CPU. Raises GpuFoundError."""
    refuse_gpus()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    stubs.install()
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    for name in ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.manual_seed = torch.manual_seed
    cuda.Stream = _Stream
    cuda.current_stream = cuda.default_stream = lambda *args: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    start = torch.distributed.init_process_group
    torch.distributed.init_process_group = functools.partial(_without_nccl, start)
    _patch_bridge()
    importlib.import_module("tests.bridge.cpu_layers").install()
    mode: Any = _CudaMeansCpu()
    mode.__enter__()


def _without_nccl(start: Any, backend: str | None = None, **keywords: Any) -> None:
    start("gloo" if backend == "nccl" else backend, **keywords)


def _patch_bridge() -> None:
    setup: Any = importlib.import_module("megatron.bridge.training.setup")
    setup.initialize_megatron = functools.partial(setup.initialize_megatron, allow_no_cuda=True)
    initialize: Any = importlib.import_module("megatron.bridge.training.initialize")
    initialize.compile_helpers = lambda: None  # the wheel has the helpers built, and no Makefile
    seed = initialize._set_random_seed

    def seeded(value: int, *args: Any, **kwargs: Any) -> None:
        seed(value, *args, **kwargs)  # skips Megatron's own tracker without a device (line 678)
        importlib.import_module("megatron.core.tensor_parallel").model_parallel_cuda_manual_seed(value)

    initialize._set_random_seed = seeded
    train: Any = importlib.import_module("megatron.bridge.training.train")
    train.get_tensor_shapes_adjust_fn_for_distillation = lambda *args, **kwargs: None  # stubbed modelopt
    saving: Any = importlib.import_module("megatron.bridge.training.checkpointing")
    for name in ("save_modelopt_state", "save_sharded_modelopt_state", "restore_modelopt_state"):
        if hasattr(saving, name):
            setattr(saving, name, lambda *args, **kwargs: None)
