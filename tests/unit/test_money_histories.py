"""Random histories of launches, with any of the launcher, the agent, the controller and the store failing at
any moment: what a run or an experiment really costs never passes its cap by more than one interval."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from launcher.money.account import HOUR_MS, Account, Entry
from tests.unit.money_world import BEFORE_BOOT, LEASE, LEASES, Stay, World

HISTORIES = 10_000


def check(world: World) -> None:
    """Really spent, run by run and for all: no more than the cap and one interval of what ran on."""
    for held in world.held().values():
        for whose, cap, over in {cap for run in held.runs for cap in held.caps(run)}:
            mine = [stay for stay in world.stays if stay.run in held.runs and over in (None, stay.run)]
            spent = sum((stay.cost(world.now) for stay in mine if is_known(stay)), Fraction(0))
            about = f"{whose}, seed {world.seed}"
            assert held.committed(over) <= cap + interval(world, held, mine), about
            assert spent <= cap + interval(world, held, mine), about


def is_known(stay: Stay) -> bool:
    """Not so nodes that nobody asked for, SkyPilot's FAILOVER's, and that none of ours ever ran on."""
    return stay.key is not None or stay.hold is not None


def interval(world: World, held: Account, stays: list[Stay]) -> Fraction:
    """What one interval costs of the stays that ran past their lease, of which each may by one."""
    over = [
        stay
        for stay in stays
        if (entry := stay.entry(held)) and (entry.end > entry.until or stay.cost(world.now) > entry.cost)
    ]
    return sum((Fraction(s.price * LEASE.check, HOUR_MS) for s in over), Fraction(0))


def check_end(world: World) -> None:
    check(world)
    for name, held in world.held().items():
        assert Account.from_json(held.to_json()) == held, name
        costs = {run: held.committed(run) for run in held.runs}
        assert sum(costs.values()) == held.committed() == sum(e.cost for e in held.entries.values())
        for one in held.entries.values():
            check_entry(world, held, one)
        taken = [(one.run, one.attempt) for one in held.entries.values() if one.attempt]
        assert len(taken) == len(set(taken)), f"an attempt has two entries, seed {world.seed}"
    for stay in world.stays:
        check_stay(world, stay, world.held()[world.account(stay.run)])


def check_stay(world: World, stay: Stay, held: Account) -> None:
    """Its entry covers what it cost, and no more than a teardown beyond."""
    assert stay.ended is not None
    if not (entry := stay.entry(held)):
        assert not is_known(stay), world.seed
        return
    real, lease = stay.cost(world.now), world.lease(stay.run)
    if lease.recovery:  # what an entry lacks, the one before it has too much: all of them together
        mine = [one for one in world.stays if one.run == stay.run and is_known(one)]
        short = sum(one.cost(world.now) for one in mine) - held.committed(stay.run)
    else:
        mine, short = [stay], real - entry.cost
    if held.caps(stay.run):  # without one an attempt goes on with no ledger at all
        assert short <= interval(world, held, mine), f"counted short, seed {world.seed}"
    if stay.said and not lease.recovery:
        assert short <= 0, f"seed {world.seed}"
        slack = 0 if world.modes[stay.run] == "here" else lease.teardown + BEFORE_BOOT
        assert -short < 1 + Fraction(stay.price * slack, HOUR_MS), f"counted long, seed {world.seed}"


def check_entry(world: World, held: Account, entry: Entry) -> None:
    """No reservation outlives who held it by more than its lease."""
    there = [stay for stay in world.stays if stay.run == entry.run and stay.entry(held) == entry]
    gone = max((stay.ended or world.now for stay in there), default=entry.launched)
    lease = world.lease(entry.run)
    longest = lease.reserved(0) if gone < lease.reserved(entry.launched) else lease.next(0)
    assert entry.end - gone <= longest, f"more than a lease leaked, seed {world.seed}"


def test_no_history_passes_a_cap_by_more_than_an_interval() -> None:
    admitted = refused = stopped = seen = recovered = 0
    modes: Counter[str] = Counter()
    for seed in range(HISTORIES):
        world = World(seed)
        world.play(check)
        check_end(world)
        admitted += len(world.stays)
        refused += world.refused
        stopped += sum(stay.said for stay in world.stays)
        recovered += world.recovered
        seen += world.seen
        modes.update(world.modes[stay.run] for stay in world.stays if stay.hold)
    counts = {"admitted": admitted, "refused": refused, "stopped": stopped, "seen": seen}
    counts["recovered"] = recovered
    assert min(counts.values()) > HISTORIES / 20, counts
    assert min(modes[mode] for mode in LEASES) > HISTORIES / 20, modes
