"""How often the trainer saves, where the launch leaves that to us: a run on spot, after its first attempt.

Trainers count steps, so the interval in seconds (``launcher.money.interval``) is divided by what a step took
in earlier attempts. What nobody has measured yet leaves the recipe's own interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from launcher.agent.job import Job
from launcher.lineage.journal import Event
from launcher.money.interval import AUTO, interval

SECTIONS = ("checkpoint", "train")
KEY = "save_interval"  # Megatron-Bridge has it in `checkpoint`, our own trainers in `train`


@dataclass(frozen=True)
class Saving:
    """Save every ``steps`` steps, which are about ``seconds``. Measured are the seconds of a ``step``, and
    where no interval was given, of a ``checkpoint`` and ``between`` two preemptions."""

    steps: int
    seconds: float
    step: float
    checkpoint: float | None = None
    between: float | None = None


def choose(job: Job, zone: str | None, earlier: Sequence[Sequence[Event]]) -> Saving | None:
    """What this attempt in ``zone`` is to do, by the journals of those before. None: as the recipe says."""
    step = _step(earlier)
    if job.checkpoint_every is None or _section(job.config) is None or step is None:
        return None
    if job.checkpoint_every != AUTO:
        seconds = float(job.checkpoint_every)
        return Saving(_steps(seconds, step), seconds, step)
    took: list[float] = [
        event["seconds"] for events in earlier for event in events if event["type"] == "checkpoint"
    ]
    if not took or job.between_preemptions is None:
        return None
    # The trainer's own part of a save is not seen: a step at least.
    checkpoint = max(median(took), step)
    expected = job.between_by_zone.get(zone or "", job.between_preemptions)
    between = _between([one for one in earlier if _zone(one) == zone], expected)
    seconds = interval(checkpoint, between)
    return Saving(_steps(seconds, step), seconds, step, checkpoint, between)


def applied(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The script's config with that interval."""
    section = _section(config)
    assert section
    return {**config, section: {**config[section], KEY: steps}}


def _section(config: Mapping[str, Any]) -> str | None:
    for name in SECTIONS:
        section = config.get(name)
        if isinstance(section, Mapping) and isinstance(section.get(KEY), int):
            return name
    return None


def _steps(seconds: float, step: float) -> int:
    return max(round(seconds / step), 1)


def _step(earlier: Sequence[Sequence[Event]]) -> float | None:
    """Seconds of a step, saves and evaluations included, over all attempts. The last points of two flushes
    tell: a trainer that gives no times has them of the flush."""
    seconds, steps = 0.0, 0
    for events in earlier:
        last = [event["points"][-1] for event in events if event["type"] == "metrics"]
        if last and last[-1]["step"] > last[0]["step"]:
            seconds += float(last[-1]["ts"]) - float(last[0]["ts"])
            steps += int(last[-1]["step"]) - int(last[0]["step"])
    return seconds / steps if seconds > 0 else None


def _zone(events: Sequence[Event]) -> str | None:
    places: list[Mapping[str, Any]] = [e["place"] for e in events if e["type"] == "attempt_started"]
    return places[0].get("zone") if places else None


def _between(earlier: Sequence[Sequence[Event]], expected: float) -> float:
    """Seconds between preemptions: what is expected, counted as one of them, and what these attempts saw."""
    ends = [events[-1] for events in earlier]
    ran = sum(float(events[-1]["ts"]) - float(events[0]["ts"]) for events in earlier)
    lost: int = sum(end["type"] != "attempt_ended" or end["status"] == "interrupted" for end in ends)
    return (expected + ran) / (1 + lost)
