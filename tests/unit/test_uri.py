"""art:// references: every form, and what is wrong at which character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.artifacts.uri import (
    ArtifactRef,
    check_alias,
    check_name,
    decode_name,
    encode_name,
    is_path_ref,
    parse_ref,
)
from launcher.errors import UserError

SEGMENTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)
REFS = st.one_of(
    st.builds(ArtifactRef, NAMES),
    st.builds(ArtifactRef, NAMES, st.integers(1, 10**9 - 1)),
    st.builds(
        ArtifactRef,
        NAMES,
        st.none(),
        st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(
            lambda alias: alias != "latest" and not alias.removeprefix("v").isdecimal()
        ),
    ),
)


@given(REFS)
def test_every_reference_reads_back(ref: ArtifactRef) -> None:
    assert parse_ref(str(ref)) == ref


@given(NAMES)
def test_a_name_is_one_path_segment_and_back(name: str) -> None:
    assert "/" not in encode_name(name)
    assert decode_name(encode_name(name)) == name


@given(st.text(max_size=30))
def test_any_text_is_a_reference_or_one_clear_error(text: str) -> None:
    try:
        ref = parse_ref(text)
    except UserError:
        with pytest.raises(UserError, match="at character"):
            parse_ref(text)
    else:
        assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("art://data", ArtifactRef("data")),
        ("art://data:latest", ArtifactRef("data")),
        ("art://data:v3", ArtifactRef("data", version=3)),
        ("art://super3/rl/data:champion", ArtifactRef("super3/rl/data", alias="champion")),
        ("data", ArtifactRef("data")),
        ("data:latest", ArtifactRef("data")),
        ("data:v3", ArtifactRef("data", version=3)),
        ("data:3", ArtifactRef("data", version=3)),
        ("data:v2-best", ArtifactRef("data", alias="v2-best")),
    ],
)
def test_forms(text: str, expected: ArtifactRef) -> None:
    assert parse_ref(text) == expected


@pytest.mark.parametrize(
    ("text", "character", "problem"),
    [
        ("", 1, "the name is missing"),
        ("art://", 7, "the name is missing"),
        ("art://:v1", 7, "the name is missing"),
        ("art://da ta", 9, "' ' may not stand in a name"),
        ("art://-data", 7, "begins with a letter or a digit"),
        ("art://a//b", 9, "an empty part"),
        ("art://a/../b", 9, "begins with a letter or a digit"),
        ("art://data:", 12, "nothing stands after the colon"),
        ("art://data:v0", 12, "they are v1, v2"),
        ("art://data:v01", 12, "they are v1, v2"),
        ("art://data:v3/file", 14, "'/' may not stand in a version"),
        ("art://data:v3:v4", 14, "':' may not stand in a version"),
        ("art://data:_x", 12, "an alias begins with a letter"),
        ("s3://bucket/data", 1, "the scheme 's3://' is not art://"),
        ("art://" + "a" * 201, 207, "longer than 200 characters"),
        ("art://data:v" + "9" * 12, 12, "no version has the 12 digits"),
    ],
)
def test_malformed(text: str, character: int, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_ref(text)
    assert f"at character {character}, " in caught.value.message
    assert problem in caught.value.message
    assert caught.value.hint is not None
    assert "art://NAME:vN" in caught.value.hint


@pytest.mark.parametrize("text", ["/a", "./a", "../a", "~/a", "file:///a", ".", ".."])
def test_paths(text: str) -> None:
    assert is_path_ref(text)


@pytest.mark.parametrize("text", ["a", "a/b", "art://a", "data:v1", ".hidden"])
def test_not_paths(text: str) -> None:
    assert not is_path_ref(text)


def test_names_and_aliases_are_checked() -> None:
    assert check_name("a/b") == "a/b"
    assert check_alias("champion") == "champion"
    for reserved in ("latest", "v3", "7"):
        with pytest.raises(UserError, match="cannot be an alias"):
            check_alias(reserved)
