"""Ray Data as the preparation stages use it: rows in, batches out, in order, without noise.

With $RAY_ADDRESS (the agent sets it) work is spread over that cluster; without, over two local workers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Neither usage statistics nor the same line once per worker.
_QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",  # Ray runs the workers side by side; each keeps to one thread
}
_LOCAL_CPUS = 2


@contextmanager
def session() -> Iterator[None]:
    """Connect to Ray, or start a small one; left connected only inside."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    import ray

    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"num_cpus": _LOCAL_CPUS, "include_dashboard": False}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True  # the same rows, in the same order, every time
        context.enable_progress_bars = False  # the stages draw their own
        context.print_on_execution_start = False
        yield
    finally:
        ray.shutdown()


def stream(
    rows: Sequence[dict[str, Any]],
    expand: Callable[..., list[dict[str, Any]]],
    *,
    expand_with: dict[str, Any],
    transform: Callable[..., Any] | None = None,
    transform_with: dict[str, Any] | None = None,
    batch_size: int = 64,
) -> Iterator[list[dict[str, Any]]]:
    """Every row through ``expand(row, **expand_with)`` and then, in batches, through ``transform``.

    ``transform`` takes and gives an Arrow table. Yields lists of rows, in the order of ``rows``.
    """
    import ray.data

    blocks = min(len(rows), 32)
    data = ray.data.from_items(list(rows), override_num_blocks=blocks).flat_map(expand, fn_kwargs=expand_with)
    if transform is not None:
        data = data.map_batches(
            transform, fn_kwargs=transform_with, batch_format="pyarrow", batch_size=batch_size
        )
    for table in data.iter_batches(batch_format="pyarrow", batch_size=None):
        yield table.to_pylist()
