"""How many vCPUs of a family of instances an AWS account may run in a region.

AWS counts its EC2 limits in vCPUs, per region, market and family (user guide, "Amazon EC2 service quotas").
They are found by their names, because the codes of new families are in no catalog:
``Running On-Demand P instances``, ``All P4, P3 and P2 Spot Instance Requests``. What is in use it does not
say there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from launcher.errors import Refused
from launcher.money.want import Market
from launcher.quotas.room import Need, Room, Told

ANSWER_S = 10.0
REGIONS_AT_ONCE = 8
_NAMES: Mapping[Market, re.Pattern[str]] = {
    "on-demand": re.compile(r"Running On-Demand (.+) instances"),
    "spot": re.compile(r"All (.+) Spot Instance Requests"),
}


def told(needs: Sequence[Need]) -> Told:
    """The quota of every region of ``needs``. Raises Refused when AWS does not answer or does not let this
    account ask."""
    regions = sorted({need.region for need in needs})
    with ThreadPoolExecutor(REGIONS_AT_ONCE) as pool:
        limits = dict(zip(regions, pool.map(limits_of, regions), strict=True))
    return Told(
        tuple(
            Room(
                region=need.region,
                market=need.market,
                instance=need.instance,
                needed=need.cpus,
                limit=int(limits[need.region][name]),
                name=name,
                unit="vCPUs",
                more=f"ask AWS for more of {name!r} of EC2 in {need.region} (console: Service Quotas)",
            )
            for need in needs
            if need.cpus and (name := quota_of(need.instance, need.market, limits[need.region]))
        )
    )


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
