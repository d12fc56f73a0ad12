"""How many vCPUs of a family of instances an AWS account may run in a region, beside what a task needs.

AWS counts its EC2 limits in vCPUs, per region, market and family (user guide, "Amazon EC2 service quotas").
They are found by their names, because the codes of new families are in no catalog:
``Running On-Demand P instances``, ``All P4, P3 and P2 Spot Instance Requests``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launcher.errors import Refused
from launcher.money import catalogs, offers
from launcher.money.want import Market, Want, split_infra

ANSWER_S = 10.0
REGIONS_AT_ONCE = 8
_NAMES: Mapping[Market, re.Pattern[str]] = {
    "on-demand": re.compile(r"Running On-Demand (.+) instances"),
    "spot": re.compile(r"All (.+) Spot Instance Requests"),
}


@dataclass(frozen=True)
class Room:
    """In ``region`` the quota ``name`` lets the account run ``limit`` vCPUs; ``needed`` are asked for."""

    region: str
    market: Market
    instance: str
    needed: int
    limit: int
    name: str

    @property
    def enough(self) -> bool:
        return self.limit >= self.needed


def rooms(wants: Sequence[Want]) -> list[Room]:
    """The quota for every region of AWS that could run one of ``wants``, where AWS tells; empty where any of
    them may go to another cloud.

    Raises Refused when AWS does not answer or does not let this account ask.
    """
    if any(split_infra(want.infra)[0] != "aws" for want in wants):
        return []
    found = [(want, offer) for want in wants for offer in offers.find(want).offers]
    cpus = {
        row.instance: int(row.cpus)
        for row in catalogs.read(catalogs.folder(), "aws", {offer.instance for _, offer in found})
    }
    regions = sorted({offer.region for _, offer in found})
    with ThreadPoolExecutor(REGIONS_AT_ONCE) as pool:
        limits = dict(zip(regions, pool.map(limits_of, regions), strict=True))
    result = {
        Room(offer.region, market, offer.instance, needed, int(limits[offer.region][name]), name)
        for want, offer in found
        for market in want.markets
        if (needed := cpus.get(offer.instance, 0) * want.nodes)
        and (name := quota_of(offer.instance, market, limits[offer.region]))
    }
    return sorted(result, key=lambda room: (-room.limit, room.region, room.instance))


def quota_of(instance: str, market: Market, names: Iterable[str]) -> str | None:
    """The quota under which ``instance`` falls: of the families that its name begins with, the longest.

    ``p5en.48xlarge`` is under ``P5`` before ``P``, ``dl1.24xlarge`` under ``DL`` and not under ``D``.
    """
    kind = instance.lower()
    best: tuple[int, str] | None = None
    for name in names:
        if not (match := _NAMES[market].fullmatch(name)):
            continue
        for family in re.findall(r"\w+", match[1]):
            if kind.startswith(family.lower()) and (best is None or len(family) > best[0]):
                best = (len(family), name)
    return best[1] if best else None


def limits_of(region: str) -> dict[str, float]:
    """The account's EC2 quotas in ``region`` by name. Raises Refused."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=ANSWER_S, read_timeout=ANSWER_S, retries={"total_max_attempts": 2})
    try:
        client = boto3.client("service-quotas", region_name=region, config=config)
        pages = client.get_paginator("list_service_quotas").paginate(ServiceCode="ec2")
        return {quota["QuotaName"]: quota["Value"] for page in pages for quota in page["Quotas"]}
    except (BotoCoreError, ClientError) as error:
        raise Refused(
            f"AWS does not tell the quotas in {region}: {error}",
            hint="the permission servicequotas:ListServiceQuotas lets it",
        ) from None


def best(found: Sequence[Room]) -> Room:
    """The region nearest to what is needed."""
    return max(found, key=lambda room: room.limit / room.needed)
