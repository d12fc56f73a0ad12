"""How many GPUs a project of Google Cloud may run in a region, asked through ``gcloud``.

Compute Engine's docs, "Allocation quotas": up to the A100 and the L4 each GPU has a quota of its own in a
region, ``NVIDIA_A100_GPUS`` and the like, which ``gcloud compute regions list`` tells with what is in use
(REST reference of regions.list, ``items.quotas``). Later ones, from the H100 on, share
``GPUS-PER-GPU-FAMILY-per-project-region`` of the Cloud Quotas API, whose dimensions are ``gpu_family`` and
``region`` and which tells no use (Cloud Quotas docs, "Configure dimensions", "QuotaInfo"). On-demand
GPUs of all kinds count against ``GPUS_ALL_REGIONS`` too, which the project tells.

Spot machines count against ``PREEMPTIBLE_NVIDIA_..._GPUS`` where that was granted, and against the standard
quota where it was not; what was not granted is not shown (docs, "Spot VMs", quotas). vCPUs are not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.quotas import tool
from launcher.quotas.room import Need, Room, Told, Untold, tightest

ANSWER_S = 20.0
"""For all regions together."""
FAMILIES = "GPUS-PER-GPU-FAMILY-per-project-region"
_HINT = (
    "it is asked through `gcloud`: install it, `gcloud auth login` and `gcloud config set project ID`, with "
    "the role Compute Viewer"
)
_FAMILIES_HINT = (
    "`gcloud services enable cloudquotas.googleapis.com`, `gcloud components install beta`, and the role "
    "Cloud Quotas Viewer (cloudquotas.quotas.get)"
)
_ALL = "GPUS_ALL_REGIONS"
_REGIONS = ("gcloud", "compute", "regions", "list", "--format=json(name,quotas)")
_PROJECT = ("gcloud", "compute", "project-info", "describe", "--format=json(name,quotas)")
# As SkyPilot's catalog writes them, where Google writes more than other dashes.
_NAMES = {"RTXPRO6000": "RTX_PRO_6000"}


@dataclass(frozen=True)
class _Quota:
    name: str
    limit: int
    used: int = 0


Quotas = Mapping[str, _Quota]


def told(needs: Sequence[Need], ask: tool.Ask = tool.ask, seconds: float = ANSWER_S) -> Told:
    """The quota of every region of ``needs`` that has GPUs; it takes no longer than ``seconds``."""
    until = time.monotonic() + seconds
    needs = [need for need in needs if need.gpu and need.gpus]
    if not needs:
        return Told()
    listed, project = ask([_REGIONS, _PROJECT], until)
    regions = {} if listed.why else by_region(listed.value)
    total, name = of_project(project.value)
    if not regions or not name:
        why = listed.why or project.why or "the answer is none that is known"
        return Told(untold=(Untold(f"Google does not tell the quotas: {why}", _HINT),))
    rows: Sequence[Any] = ()
    unnamed = None
    if any(_metric(need) not in regions.get(need.region, {}) for need in needs):
        (answer,) = ask([_families_of(name)], until)
        rows, unnamed = _rows(answer.value), answer.why
    rooms: list[Room] = []
    untold: list[Untold] = []
    for need in needs:
        found = _room(need, regions.get(need.region, {}), rows, total, name)
        if found is not None:
            rooms.append(found)
            continue
        why = unnamed or "its answer does not name it"
        what = f"{need.gpu} in {need.region}, {need.market}"
        untold.append(Untold(f"Google does not tell the quota of {what}: {why}", _FAMILIES_HINT, need.market))
    return Told(tuple(rooms), tuple(dict.fromkeys(untold)))


def family_limit(rows: Sequence[Any], family: str, region: str) -> int | None:
    """The limit of ``family`` in ``region`` by the ``dimensionsInfos`` of a QuotaInfo.

    A row that names the region goes before one that names the family only, and both before the default
    (Cloud Quotas docs, "Dimension precedence"). None where no row names the family, whose spelling is then
    unsure, or a row has another form.
    """
    try:
        return _limit(rows, family, region)
    except tool.UNREADABLE:
        return None


def _limit(rows: Sequence[Any], family: str, region: str) -> int | None:
    named = False
    best: tuple[tuple[bool, bool], int] | None = None
    for row in rows:
        dimensions = row.get("dimensions") or {}
        named = named or dimensions.get("gpu_family") == family
        if region not in row["applicableLocations"] or dimensions.get("gpu_family", family) != family:
            continue
        # A value of 0 is left out, as in all JSON that is made of protocol buffers.
        limit = int((row.get("details") or {}).get("value", 0))
        rank = ("region" in dimensions, "gpu_family" in dimensions)
        if best is None or rank > best[0]:
            best = (rank, limit)
    # A negative limit means none in some of Google's APIs; nothing says so of this one.
    return best[1] if named and best and best[1] >= 0 else None


def _families_of(project: str) -> tool.Command:
    words = ("gcloud", "beta", "quotas", "info", "describe", FAMILIES)
    return (*words, "--service=compute.googleapis.com", f"--project={project}", "--format=json")


def _metric(need: Need) -> str:
    gpu = need.gpu or ""
    return f"NVIDIA_{_NAMES.get(gpu, gpu.replace('-', '_'))}_GPUS"


def _room(need: Need, region: Quotas, rows: Sequence[Any], total: _Quota | None, project: str) -> Room | None:
    """None where it cannot be told."""
    standard = region.get(_metric(need)) or _of_family(need, rows)
    if need.market == "on-demand":
        rooms = [_of(need, quota, project) for quota in (standard, total) if quota]
        if standard:
            return tightest(rooms)
        return next((room for room in rooms if not room.enough), None)
    granted = region.get(f"PREEMPTIBLE_{_metric(need)}")
    if granted and granted.limit:
        return _of(need, granted, project)
    room = _of(need, standard, project) if standard else None
    # A grant for spot that is not shown may be there beside a standard quota that is too small.
    return room if room and (room.enough or granted) else None


def _of_family(need: Need, rows: Sequence[Any]) -> _Quota | None:
    family = _metric(need).removesuffix("_GPUS")
    limit = family_limit(rows, family, need.region)
    return None if limit is None else _Quota(f"GPUs per GPU family, {family}", limit)


def _of(need: Need, quota: _Quota, project: str) -> Room:
    where = "" if quota.name == _ALL else f" in {need.region}"
    return Room(
        region=need.region,
        market=need.market,
        instance=need.instance,
        needed=need.gpus,
        limit=quota.limit,
        name=quota.name,
        unit="GPUs",
        more=f"ask Google for more of {quota.name!r}{where} for the project {project} "
        "(console: IAM & Admin, Quotas & System Limits)",
        used=quota.used,
    )


def by_region(answer: Any) -> dict[str, Quotas]:
    """What ``gcloud compute regions list`` answered; empty for another form."""
    try:
        return {region["name"]: _quotas(region.get("quotas") or ()) for region in answer}
    except tool.UNREADABLE:
        return {}


def of_project(answer: Any) -> tuple[_Quota | None, str | None]:
    """The quota of all GPUs and the project's id, of what ``gcloud compute project-info describe`` answered;
    None for what is not there."""
    try:
        return _quotas(answer.get("quotas") or ()).get(_ALL), str(answer["name"])
    except tool.UNREADABLE:
        return None, None


def _quotas(items: Sequence[Any]) -> Quotas:
    return {
        item["metric"]: _Quota(item["metric"], int(item["limit"]), int(item.get("usage") or 0))
        for item in items
        if "metric" in item
    }


def _rows(answer: Any) -> Sequence[Any]:
    rows = answer.get("dimensionsInfos") if isinstance(answer, dict) else None
    return rows if isinstance(rows, list) else ()
