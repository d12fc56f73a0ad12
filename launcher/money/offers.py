"""Offers: every place that can run a task, and its price, from SkyPilot's catalogs.

    [want] = want_of(task)                    what the task asks of its nodes
    found = find(want)                        -> Found(offers, left_out)
    best = cheapest(found.offers, "spot")     the Offer, or None

Prices are of one node; ``Offer.total`` is for all of them. None is unknown or not offered, and never the
same as 0. What a catalog has wrong or leaves out is not guessed: such a place has no price, or a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher import fit
from launcher.clusters import Profile
from launcher.errors import Refused, UserError, did_you_mean
from launcher.money import able, catalogs, places
from launcher.money.catalogs import DIGITS, Row
from launcher.money.want import MARKETS, Market, Want, split_infra

ODD_PRICE = 0.6
"""An on-demand price below this share of its cloud's median gets a note."""
NO_INSTANCE = "-"
"""The instance type of an offer that a profile makes."""


@dataclass(frozen=True)
class Offer:
    """One place and one instance type: dollars per hour of **one** node on spot and on-demand.

    ``ask`` is None where SkyPilot finds this place for the task as it is; else what to ask for instead,
    such as ``--gpus H100-SXM:8``. ``floor``: the prices are the lowest bids of an auction, not what is paid.
    ``cheapest`` passes over both.
    """

    cloud: str
    region: str
    zone: str | None
    instance: str
    gpu: str | None
    gpus: int
    nodes: int
    spot: float | None
    on_demand: float | None
    note: str = ""
    ask: str | None = None
    floor: bool = False

    @property
    def unpriced(self) -> bool:
        """Nobody knows a price: neither market has one."""
        return self.spot is None and self.on_demand is None

    @property
    def place(self) -> str:
        """As SkyPilot's ``infra``: ``aws/us-east-1/use1-az1``."""
        return "/".join(part for part in (self.cloud, self.region, self.zone) if part)

    def price(self, market: Market) -> float | None:
        """Dollars per hour of one node."""
        return self.spot if market == "spot" else self.on_demand

    def total(self, market: Market) -> float | None:
        """Dollars per hour of all nodes: exactly ``price x nodes``."""
        one = self.price(market)
        return None if one is None else round(one * self.nodes, DIGITS)


@dataclass(frozen=True)
class Found:
    """``left_out``: why each cloud that has none of the offers has none."""

    offers: tuple[Offer, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def find(want: Want, root: Path | None = None) -> Found:
    """Every place whose catalog lies in ``root`` (default: ``catalogs.folder()``) and that can run ``want``.

    Per place the instance types that are cheapest on a market. Raises Refused when there is no catalog
    to look in, and UserError for a cloud that has none.
    """
    found, left_out = everywhere(want, root)
    clouds = dict.fromkeys(offer.cloud for offer in found)
    by_cloud = ([offer for offer in found if offer.cloud == cloud] for cloud in clouds)
    return Found(tuple(offer for here in by_cloud for offer in _noted(_best(here))), left_out)


def everywhere(want: Want, root: Path | None = None) -> tuple[list[Offer], dict[str, str]]:
    """Like ``find``, with every instance type and without notes on prices."""
    root = root or catalogs.folder()
    cloud, region, zone = split_infra(want.infra)
    known = catalogs.clouds(root)
    hint = (
        "`sky check` and then `sky show-gpus` download SkyPilot's catalogs; "
        f"{catalogs.FOLDER_ENV}=DIR names another folder"
    )
    if not known:
        raise Refused(f"there are no price catalogs in {root}", hint=hint)
    if cloud and cloud not in known:
        raise Refused(
            f"there is no price catalog of {cloud} in {root} (there are {', '.join(known)})", hint=hint
        )
    offers: list[Offer] = []
    left_out: dict[str, str] = {}
    for name in [cloud] if cloud else known:
        if reason := able.unable(name, want):
            left_out[name] = reason
            continue
        here = [
            offer
            for offer in _of_cloud(root, name, want)
            if (region is None or offer.region.lower() == region.lower()) and _in_zone(offer, zone)
        ]
        if not here:
            left_out[name] = _nothing(want, region, zone)
        offers += here
    return offers, left_out


def cheapest(offers: Iterable[Offer], market: Market | None = None) -> Offer | None:
    """The offer with the lowest price on ``market`` (None: on either), of those that SkyPilot would find for
    the task as it is and whose price is what is paid. None when there is none."""
    priced = [
        (paid, offer.place, offer)
        for offer in offers
        if offer.ask is None and not offer.floor and (paid := _lowest(offer, market)) is not None
    ]
    return min(priced, key=lambda item: item[:2])[2] if priced else None


def by_profile(profile: Profile, want: Want) -> Offer | None:
    """The one offer of a profile that says its price, or whose place no catalog knows (one's own machine,
    Slurm, Kubernetes): then without a price. Its price is that of the market that it asks for. None where
    the catalogs are to be asked."""
    cloud = (profile.infra or profile.name).split("/")[0].lower()
    if profile.price_per_hour is None and profile.backend != "local" and cloud not in places.OWN:
        return None
    note = (
        "price of the profile"
        if profile.price_per_hour is not None
        else (f"no price known: say price_per_hour in clusters/{profile.name}.yaml")
    )
    _, region, zone = split_infra(profile.infra)
    return Offer(
        cloud=cloud,
        region=region or "",
        zone=zone,
        instance=NO_INSTANCE,
        gpu=want.gpus[0] if want.count else None,
        gpus=want.count,
        nodes=want.nodes,
        spot=profile.price_per_hour if profile.spot or profile.spot_first else None,
        on_demand=None if profile.spot else profile.price_per_hour,
        note=note,
    )


def _lowest(offer: Offer, market: Market | None) -> float | None:
    totals = [offer.total(one) for one in (MARKETS if market is None else (market,))]
    return min((paid for paid in totals if paid is not None), default=None)


def _in_zone(offer: Offer, zone: str | None) -> bool:
    """AWS's catalog has zone ids (``use1-az4``), which an account sees as letters of its own order: a letter
    (``us-east-1a``) may be any zone of the region."""
    if zone is None:
        return True
    if offer.cloud == "aws" and zone.lower().rstrip("abcdef") == offer.region.lower():
        return True
    return (offer.zone or "").lower() == zone.lower()


def misnamed(want: Want, root: Path | None = None) -> str | None:
    """The region, zone or GPU of ``want`` that its cloud's catalog does not have at all, in words, with the
    nearest that it has; None where it has all of them, and where no cloud is named or no catalog is there."""
    cloud, region, zone = split_infra(want.infra)
    root = root or catalogs.folder()
    if cloud not in catalogs.clouds(root):
        return None
    rows = catalogs.read(root, cloud)
    asked = [("region", region, {row.region for row in rows})]
    if not (cloud == "aws" and zone and zone[:-1] in {row.region for row in rows}):  # a letter: see _in_zone
        asked.append(("zone", zone, {row.zone for row in rows if row.zone}))
    gpus = {row.gpu for row in rows if row.gpu}
    if not {gpu.lower() for gpu in want.gpus} & {gpu.lower() for gpu in gpus}:  # of several one will do
        asked += [("GPU", gpu, gpus) for gpu in want.gpus]
    for what, name, known in asked:
        if name and known and name.lower() not in {one.lower() for one in known}:
            return f"there is no {what} {name!r} in SkyPilot's catalog of {cloud}{did_you_mean(name, known)}"
    return None


def _nothing(want: Want, region: str | None, zone: str | None) -> str:
    what = f"{' or '.join(want.gpus)}:{want.count}" if want.count else "such a node"
    return f"no {what} in {zone or region}" if zone or region else f"no {what}"


def _of_cloud(root: Path, cloud: str, want: Want) -> list[Offer]:
    if not want.count:
        return _cpu_offers(root, cloud, want)
    words = {_chip(kind) for kind in want.gpus}
    rows = catalogs.read(root, cloud, words | (_gcp_hosts(words, want.count) if cloud == "gcp" else set()))
    asked = {kind.lower() for kind in want.gpus}
    found = []
    for row in rows:
        truth = places.GPUS_IN_TRUTH.get(row.instance)
        by_count = abs(row.count - want.count) <= 0.01 and truth in (None, want.count)
        if not by_count and truth != want.count:
            continue
        if not row.gpu or _chip(row.gpu) not in words or not _enough_memory(row, want):
            continue
        exact = row.gpu.lower() in asked
        if not exact and not any(_same_chip(row, kind) for kind in want.gpus):
            continue
        ask, note = None, ""
        if not by_count:
            ask = f"instance type {row.instance}"
            note = f"the catalog says {row.count:g} GPUs"
        elif not exact:
            ask = f"--gpus {row.gpu}:{want.count}"
        spot, paid = row.spot, row.on_demand
        instance = row.instance
        if cloud == "gcp":
            host = _gcp_host(rows, row, want.count)
            if host is None:
                continue
            instance = host.instance
            paid = _sum(row.on_demand, host.on_demand, host.free[0])
            spot = _sum(row.spot, host.spot, host.free[1])
        found.append(_offer(cloud, row, instance, want, spot=spot, on_demand=paid, note=note, ask=ask))
    return found


def _cpu_offers(root: Path, cloud: str, want: Want) -> list[Offer]:
    family = re.compile(places.CPU_FAMILIES.get(cloud, ""))
    words = {
        "aws": ("m6i", "m7i.", "r6i", "r7i.", "c6i", "c7i."),
        "gcp": ("n2-", "n4-"),
        "oci": ("vm.standard",),
    }
    rows = catalogs.read(root, cloud, words.get(cloud))
    # SkyPilot's own defaults for what a task leaves open.
    cpus, memory = want.cpus or ("8+" if want.memory is None else "0+"), want.memory or "4x"
    return [
        _offer(cloud, row, row.instance, want, spot=row.spot, on_demand=row.on_demand)
        for row in rows
        if row.instance
        and family.match(row.instance)
        and row.arch in ("", "x86_64")
        and _fits(row.cpus, cpus)
        and _fits(row.memory, memory, row.cpus)
    ]


def _fits(has: float, asked: str, cpus: float = 0.0) -> bool:
    """Whether it is what is asked as ``4``, at least ``4+``, or ``4x`` for each vCPU."""
    try:
        number = float(asked.rstrip("+x"))
    except ValueError:
        raise UserError(f"{asked!r} is no size of a node: write 8, 8+ or, of memory, 4x") from None
    if asked.endswith("x"):
        return has >= number * cpus
    return has >= number if asked.endswith("+") else abs(has - number) < 0.01


def _offer(
    cloud: str,
    row: Row,
    instance: str,
    want: Want,
    *,
    spot: float | None,
    on_demand: float | None,
    note: str = "",
    ask: str | None = None,
) -> Offer:
    return Offer(
        cloud=cloud,
        region=row.region or "-",
        zone=row.zone,
        instance=instance,
        gpu=row.gpu if want.count else None,
        gpus=want.count,
        nodes=want.nodes,
        spot=spot if "spot" in want.markets and cloud not in places.NO_SPOT else None,
        on_demand=on_demand if "on-demand" in want.markets else None,
        note=note,
        ask=ask,
        floor=cloud in places.AUCTIONS,
    )


def _gcp_hosts(chips: set[str], count: int) -> set[str]:
    """The words that find the lines of every host that ``count`` such GPUs may hang on."""
    named = [table for gpu, table in places.GCP_HOSTS.items() if _chip(gpu) in chips]
    others = chips - {_chip(gpu) for gpu in places.GCP_HOSTS}
    return {host for table in named for host in table.get(count, ())} | ({"n1-"} if others else set())


def _gcp_host(rows: Sequence[Row], gpu: Row, count: int) -> Row | None:
    """The cheapest host in the GPU's zone; None where GCP lists none."""
    named = places.GCP_HOSTS.get(gpu.gpu)
    if named is not None:
        hosts = [row for row in rows if row.instance in named.get(count, ())]
    else:
        least = places.GCP_CPUS.get(gpu.gpu, places.GCP_CPUS[""]).get(count)
        if least is None:
            return None
        hosts = [
            row
            for row in rows
            if row.instance.startswith("n1-") and row.cpus >= least and row.memory >= 4 * least
        ]
    near = [row for row in hosts if row.zone == gpu.zone and (row.on_demand is not None or row.free[0])]
    return min(near, key=lambda row: (row.on_demand or 0.0, row.instance), default=None)


def _sum(gpu: float | None, host: float | None, host_is_free: bool) -> float | None:
    """Both parts must be known. A host may be free (a B200's price is all in the GPU's line), a GPU not."""
    if gpu is None or (host is None and not host_is_free):
        return None
    return round(gpu + (host or 0.0), DIGITS)


def _chip(kind: str) -> str:
    """``h100`` of ``H100``, ``H100-SXM`` and ``H100-80G-PCIe``."""
    return kind.lower().partition("-")[0]


def _same_chip(row: Row, kind: str) -> bool:
    """Another cloud's name for ``kind`` with at least its memory: ``A100`` with 80 GB for ``A100-80GB``."""
    wanted = fit.GPU_MEMORY_GB.get(kind)
    has = row.gpu_gib or fit.GPU_MEMORY_GB.get(row.gpu)
    if _chip(row.gpu) != _chip(kind):
        return False
    return wanted is None or (has is not None and has >= 0.95 * wanted)


def _enough_memory(row: Row, want: Want) -> bool:
    has = row.gpu_gib or fit.GPU_MEMORY_GB.get(row.gpu)
    return want.gpu_gb is None or has is None or has >= 0.95 * want.gpu_gb


def _best(offers: Sequence[Offer]) -> list[Offer]:
    """Per place and GPU name what is cheapest on-demand, and on spot; a place without any price is kept."""
    groups: dict[tuple[object, ...], list[Offer]] = {}
    for offer in offers:
        groups.setdefault((offer.region, offer.zone, offer.gpu, offer.ask), []).append(offer)
    kept: list[Offer] = []
    for group in groups.values():
        chosen = []
        for market in MARKETS:
            priced = [offer for offer in group if offer.price(market) is not None]
            if priced:
                chosen.append(min(priced, key=lambda o: (o.price(market), o.instance)))
        kept += dict.fromkeys(chosen or group[:1])
    return kept


def _noted(offers: Sequence[Offer]) -> list[Offer]:
    """The offers with a word on what is odd about their prices."""
    medians: dict[str | None, float] = {}
    for gpu in {offer.gpu for offer in offers}:
        paid = sorted(o.on_demand for o in offers if o.gpu == gpu and o.on_demand is not None)
        medians[gpu] = paid[len(paid) // 2] if paid else 0.0
    result = []
    for offer in offers:
        notes = [offer.note] if offer.note else []
        if offer.ask:
            notes.append(f"ask for {offer.ask}" if offer.ask.startswith("-") else f"ask for the {offer.ask}")
        if offer.unpriced:
            notes.append("no price listed")
        if offer.floor:
            notes.append("an auction: these are the lowest bids taken")
        elif offer.spot is not None and offer.on_demand is not None and offer.spot >= offer.on_demand:
            word = "no cheaper than" if offer.spot == offer.on_demand else "above"
            notes.append(f"spot is {word} on-demand")
        if offer.on_demand is not None and offer.on_demand < ODD_PRICE * medians[offer.gpu]:
            notes.append("on-demand far below this cloud's other places: it may need a commitment")
        if offer.cloud in ("lambda", "oci"):
            notes.append("listed in every region, there or not")
        result.append(replace(offer, note="; ".join(notes)))
    return result
