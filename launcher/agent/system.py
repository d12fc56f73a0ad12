"""How busy the node is: MLflow's own monitors of CPU, memory, disk, network and GPU, used as a library."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any

from launcher.agent.ends import say
from launcher.agent.metrics import Point

EVERY_S = 10.0
_FIRST_S = 1.0


class SystemMetrics:
    """Samples in a thread until ``stop``. A point's step is the run's age in seconds, of all attempts.

    ``before_s`` is how long earlier attempts ran.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._before = before_s
        self._began = time.monotonic()
        self._points: list[Point] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Nothing starts when MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING, MLflow's own switch, is false."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0"):
            self._thread.start()

    def take(self) -> list[Point]:
        """The points since the last call."""
        with self._lock:
            points, self._points = self._points, []
        return points

    def stop(self) -> None:
        self._stopping.set()

    def _sample(self) -> None:
        try:
            monitors = _monitors()
        except Exception as error:  # a library's own trouble, whatever it is, must not end a run
            say(f"no system metrics: {error}")
            return
        for monitor in monitors:
            monitor.collect_metrics()  # the first look only begins the interval of the CPU's share
            monitor.clear_metrics()
        pause = _FIRST_S
        while not self._stopping.wait(pause):
            pause = EVERY_S
            for monitor in list(monitors):
                try:
                    self._add(monitor)
                except Exception as error:
                    say(f"system metrics: {type(monitor).__name__} failed and is left out: {error}")
                    monitors.remove(monitor)

    def _add(self, monitor: Any) -> None:
        monitor.collect_metrics()
        values = monitor.aggregate_metrics()
        monitor.clear_metrics()
        now = time.time()
        step = int(self._before + time.monotonic() - self._began)
        with self._lock:
            self._points += [
                {"key": key, "value": value, "step": step, "ts": now} for key, value in values.items()
            ]


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), NetworkMonitor(), DiskMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # there is no GPU, or nothing to ask it with
        monitors.append(GPUMonitor())
    return monitors
