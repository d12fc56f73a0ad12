"""The clouds' notices of a preemption: what their metadata services answer, and what they might."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.agent import notice
from tests.metadata import (
    AWS_NOTICE,
    AWS_SPOT,
    AZURE_NOTICE,
    AZURE_SPOT,
    GCP_NOTICE,
    GCP_SPOT,
    Metadata,
    metadata,
)
from tests.rig import until

NOW = 1_790_000_000.0
CLOUDS = {"AWS": (AWS_SPOT, AWS_NOTICE), "GCP": (GCP_SPOT, GCP_NOTICE), "Azure": (AZURE_SPOT, AZURE_NOTICE)}
ON_DEMAND = {"AWS": "on-demand", "GCP": "FALSE", "Azure": ""}


@pytest.fixture
def instance() -> Iterator[Metadata]:
    with metadata() as made:
        yield made


def asked(cloud: str, address: str) -> notice.Service:
    found = notice.service(cloud)
    assert found
    return replace(found, base=f"http://{address}", every=0.02)


def event(kind: str, when: str) -> dict[str, object]:
    """As Azure shows it; the resources are all machines of its set."""
    return {"EventId": "A1", "EventType": kind, "NotBefore": when, "Resources": ["node-1"]}


def azure(*events: dict[str, object]) -> str:
    return json.dumps({"DocumentIncarnation": 1, "Events": list(events)})


@pytest.mark.parametrize(
    ("cloud", "answer", "leaves_at"),
    [
        ("AWS", 404, None),
        ("AWS", '{"action": "terminate", "time": "2026-09-21T13:02:11Z"}', 1789995731.0),
        ("AWS", '{"action": "stop", "time": "2026-09-21T13:02:11Z"}', 1789995731.0),
        ("GCP", "FALSE", None),
        ("GCP", "TRUE\n", NOW + 30),
        ("Azure", azure(), None),
        ("Azure", azure(event("Freeze", "Mon, 21 Sep 2026 13:02:11 GMT")), None),
        ("Azure", azure(event("Preempt", "Mon, 21 Sep 2026 13:02:11 GMT")), 1789995731.0),
        ("Azure", azure(event("Reboot", ""), event("Preempt", "")), NOW),
        (
            "Azure",
            azure(
                event("Preempt", "Mon, 21 Sep 2026 14:02:11 GMT"),
                event("Preempt", "Mon, 21 Sep 2026 13:02:11 GMT"),
            ),
            1789995731.0,
        ),
    ],
)
def test_a_notice_has_its_time(
    instance: Metadata, cloud: str, answer: str | int, leaves_at: float | None
) -> None:
    instance.there[CLOUDS[cloud][1]] = answer
    service = asked(cloud, instance.address)
    assert service.spot(service.base)
    assert service.leaves_at(service.base, NOW) == leaves_at
    instance.there[CLOUDS[cloud][0]] = ON_DEMAND[cloud]
    assert not service.spot(service.base)


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("answer", ["", "<html>", "{}", "[]", "null", '{"time": 5}', '{"Events": [1]}', 503])
def test_what_is_no_answer_is_no_notice(instance: Metadata, cloud: str, answer: str | int) -> None:
    instance.there[CLOUDS[cloud][1]] = answer
    service = asked(cloud, instance.address)
    with pytest.raises(notice.Unanswered):
        service.leaves_at(service.base, NOW)


@settings(max_examples=60, deadline=None)
@given(st.text() | st.dictionaries(st.sampled_from(["time", "Events", "action"]), st.text()).map(json.dumps))
def test_whatever_is_answered_it_is_a_time_or_nothing(text: str) -> None:
    with metadata() as instance:
        for cloud, (_, path) in CLOUDS.items():
            instance.there[path] = text
            service = asked(cloud, instance.address)
            try:
                found = service.leaves_at(service.base, NOW)
            except notice.Unanswered:
                continue
            assert found is None or isinstance(found, float)


def test_it_is_asked_on_spot_until_the_notice_comes_and_told_once(instance: Metadata) -> None:
    told: list[float] = []
    thread = notice.watch(asked("AWS", instance.address), told.append)
    until(lambda: instance.asked.count(AWS_NOTICE) > 3)
    assert (told, instance.asked.count(AWS_SPOT)) == ([], 1)
    instance.take_away(NOW)
    thread.join(10)
    assert told == [NOW]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_on_demand_it_is_not_asked_again(instance: Metadata, cloud: str) -> None:
    instance.there[CLOUDS[cloud][0]] = ON_DEMAND[cloud]
    told: list[float] = []
    notice.watch(asked(cloud, instance.address), told.append).join(10)
    assert (instance.asked, told) == ([CLOUDS[cloud][0]], [])


@pytest.mark.parametrize("cloud", [None, "local", "fake", "Kubernetes", "Slurm", "SSH", "Lambda"])
def test_elsewhere_nothing_is_asked(cloud: str | None) -> None:
    assert notice.service(cloud) is None


def test_a_service_that_is_not_there_yet_is_said_once_and_asked_again(
    instance: Metadata, capsys: pytest.CaptureFixture[str]
) -> None:
    instance.there |= {AWS_SPOT: 503, AWS_NOTICE: "<html>"}
    told: list[float] = []
    thread = notice.watch(asked("AWS", instance.address), told.append)
    until(lambda: instance.asked.count(AWS_SPOT) > 2)
    instance.there[AWS_SPOT] = "spot"
    until(lambda: instance.asked.count(AWS_NOTICE) > 2)
    assert thread.is_alive()
    instance.take_away(NOW)
    thread.join(10)
    assert told == [NOW]
    assert capsys.readouterr().err.count("a notice of preemption would not be seen now: ") == 1


def test_neither_a_hang_nor_a_proxy_holds_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes the connection and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        for cloud in CLOUDS:
            service = asked(cloud, address)
            with pytest.raises(notice.Unanswered, match="timed out"):
                service.spot(service.base)
        assert time.monotonic() - began < 5
        monkeypatch.setenv("http_proxy", f"http://{address}")
        with metadata() as instance:
            service = asked("GCP", instance.address)
            assert service.spot(service.base)
    with pytest.raises(notice.Unanswered, match="refused"):
        asked("GCP", address).spot(f"http://{address}")


def test_the_addresses_are_the_clouds_own_and_may_be_set_as_for_their_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    bases = [found.base for cloud in CLOUDS if (found := notice.service(cloud))]
    assert bases == ["http://169.254.169.254", "http://metadata.google.internal", "http://169.254.169.254"]
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9/")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    bases = [found.base for cloud in ("aws", "gcp") if (found := notice.service(cloud))]
    assert bases == ["http://127.0.0.1:9"] * 2
