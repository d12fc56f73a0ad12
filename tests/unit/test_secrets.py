"""Secrets: found by name, shown by name, never written by value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import secrets
from launcher.clusters import Profile
from launcher.errors import Refused, UserError

PROFILE = Profile(name="aws", files=())


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in secrets.STANDARD:
        monkeypatch.delenv(name, raising=False)


def test_standard_ones_are_handed_on_where_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets.of(PROFILE, None, None) == {}
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    assert secrets.of(PROFILE, None, None) == {"HF_TOKEN": "hf_fake"}


def test_a_demanded_one_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile(name="ours", files=(), secrets=("VAULT_KEY",))
    monkeypatch.setenv("VAULT_KEYS", "fake")
    with pytest.raises(Refused, match=r"ours needs the secret VAULT_KEY.*VAULT_KEYS"):
        secrets.of(profile, None, None)
    monkeypatch.setenv("VAULT_KEY", "fake")
    assert secrets.of(profile, None, None) == {"VAULT_KEY": "fake"}


def test_a_file_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "from the environment")
    file = tmp_path / "secrets.env"
    file.write_text("# ours\n\nexport HF_TOKEN='hf fake'\nOTHER=a=b\n")
    assert secrets.of(PROFILE, None, file) == {"HF_TOKEN": "hf fake", "OTHER": "a=b"}


def test_a_wrong_line_is_named_without_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    file.write_text("A=1\nhunter2\n")
    with pytest.raises(UserError) as caught:
        secrets.read(file)
    assert f"{file}:2" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "logs_in"),
    [
        ("docker:nvcr.io/nvidia/nemo:26.04", True),
        ("nvcr.io/x", True),
        ("docker:ubuntu", False),
        (None, False),
    ],
)
def test_ngc_is_logged_in_to_where_its_image_is_used(
    image: str | None, logs_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGC_API_KEY", "nvapi-fake")
    found = secrets.of(PROFILE, image, None)
    assert (found.get("SKYPILOT_DOCKER_PASSWORD") == "nvapi-fake") is logs_in


@given(
    st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True), st.text("abc =#'\"", max_size=8))
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    file = tmp_path_factory.mktemp("secrets") / "file"
    file.write_text("".join(f'{name}="{value}"\n' for name, value in values.items()))
    assert secrets.read(file) == values
