"""Import-time stand-ins for packages that exist for GPUs only, so that Megatron-Bridge can be imported.

They hold no behaviour: whatever is made of them at run time raises. For tests only.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

# modelopt's real package patches TransformerEngine's modules, so it is stubbed with it.
PACKAGES = ("transformer_engine", "modelopt")
TE_VERSION = "2.9.0"


class Absent:
    """Stands for any class or function of a stubbed package."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a stubbed package was used at run time")

    def __class_getitem__(cls, item: Any) -> type[Absent]:
        return cls


class _FusedAdam(Absent):
    """With the arguments of TransformerEngine 2's, which Megatron-Core looks for when it validates."""

    def __init__(
        self,
        params: Any,
        master_weight_dtype: Any = None,
        exp_avg_dtype: Any = None,
        exp_avg_sq_dtype: Any = None,
        use_decoupled_grad: bool = False,
    ) -> None:
        super().__init__()


class _Module(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].islower():
            try:
                return importlib.import_module(f"{self.__name__}.{name}")
            except ImportError:
                pass
        made = type(name, (Absent,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in PACKAGES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Make the stubbed packages importable. Megatron-Core is imported first, so that it knows that there is
    no TransformerEngine; a package that is really installed wins."""
    for name in (
        "megatron.core",
        "megatron.core.models.gpt",
        "megatron.core.optimizer",
        "megatron.core.models.mamba",
        "megatron.core.models.gpt.gpt_layer_specs",
        "megatron.core.models.gpt.experimental_attention_variant_module_specs",
        "megatron.core.models.mamba.mamba_layer_specs",
    ):
        importlib.import_module(name)
    from packaging.version import Version

    core: Any = importlib.import_module("megatron.core.utils")
    core._te_version = Version(TE_VERSION)  # what settings ask for when they are validated
    sys.meta_path.append(_Finder())
    optimizers: Any = importlib.import_module("transformer_engine.pytorch.optimizers")
    optimizers.FusedAdam = _FusedAdam
