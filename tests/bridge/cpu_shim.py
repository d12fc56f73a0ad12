"""Makes ``cuda`` mean ``cpu`` in this process, so that Megatron-Bridge's own training loop runs on a CPU.

For tests only: what it shows is that our scripts drive the real Bridge rightly, never how fast or how well
a GPU would train. It refuses to load where there is a GPU. Source lines are of Megatron-Bridge 0.3.1 and
Megatron-Core 0.16.1.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


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


def install() -> None:
    """Raises RuntimeError on a machine with a GPU. Bridge's stubs must be importable already."""
    if torch.cuda.is_available() or torch.cuda.device_count():
        raise RuntimeError("the CPU shim is for machines without a GPU: it would hide what the GPU does")
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
    _patch_bridge()
    mode: Any = _CudaMeansCpu()
    mode.__enter__()


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
