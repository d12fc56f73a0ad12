"""Which cloud to ask for its quotas, and about which instances."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.money import catalogs, offers
from launcher.money.want import Want, split_infra
from launcher.quotas import aws, azure, gcp, tool
from launcher.quotas.room import Need, Told


def told(wants: Sequence[Want], ask: tool.Ask = tool.ask) -> Told:
    """The quota of every region that could run one of ``wants``, where their cloud tells; nothing where they
    may go to several clouds, of which another may have room.

    Raises Refused when there is no catalog to look in, or AWS does not answer.
    """
    clouds = {split_infra(want.infra)[0] for want in wants}
    if clouds == {"aws"}:
        return aws.told(needs(wants))
    if clouds == {"azure"}:
        return azure.told(needs(wants), ask)
    if clouds == {"gcp"}:
        return gcp.told(needs(wants), ask)
    return Told()


def needs(wants: Sequence[Want]) -> list[Need]:
    """What could run ``wants``, of which all name the same cloud; the cheapest first."""
    found = [(want, offer) for want in wants for offer in offers.find(want).offers]
    if not found:
        return []
    rows = catalogs.read(catalogs.folder(), found[0][1].cloud, {offer.instance for _, offer in found})
    cpus = {row.instance: int(row.cpus) for row in rows}
    priced = [
        (
            price if (price := offer.total(market)) is not None else float("inf"),
            Need(
                region=offer.region,
                market=market,
                instance=offer.instance,
                cpus=cpus.get(offer.instance, 0) * want.nodes,
                gpu=offer.gpu,
                gpus=offer.gpus * want.nodes,
            ),
        )
        for want, offer in found
        for market in want.markets
    ]
    return list(dict.fromkeys(need for _, need in sorted(priced, key=lambda item: item[0])))
