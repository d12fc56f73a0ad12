"""Text into token ids, a document of any length in bounded memory.

A tokenizer holds some hundred bytes for each byte of the text that it is given. A long document is therefore
cut, where that provably changes nothing, and its pieces are encoded one after the other.

Nearly all tokenizers of today first split the text by a regular expression, then encode each part alone. A
place in the text where every match ends and the next begins, whatever stands before and after, is a safe cut.
Such are, for expressions made of ``_ALTERNATIVES`` alone:

* before a space that follows anything but white space, and
* before a line feed that follows a letter or a digit (of the scripts in ``_CUT``).

Proof. No alternative matches a non-space and then a space, or a letter or digit and then a line feed, so no
match reaches over the cut; ``\\s+`` sees to it that the white space after the cut begins a match. Only
``\\s+(?!\\S)`` looks beyond its end, at one character and after white space, hence never over a cut. No
alternative looks behind. What comes later in the tokenizer works on each part alone. NFC, the one normaliser
allowed, composes neither spaces nor line feeds with anything. For any other tokenizer a document is encoded
whole: correct too, but it takes memory by its length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

PIECE_CHARACTERS = 50_000

_LETTERS = "0-9A-Za-z\u0410-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_CUT = re.compile(rf"\S(?= )|[{_LETTERS}](?=\n)")

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
# What the expressions of GPT-2, GPT-4, GPT-4o, Llama 3, Qwen, Mistral's Tekken and Nemotron are made of.
_ALTERNATIVES = frozenset(
    [
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _CONTRACTION),
        *(r" ?\p{L}+", r" ?\p{N}+", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"[^\r\n\p{L}\p{N}]?\p{L}+"),
        *_WORDS,
        *(word + _CONTRACTION + "?" for word in _WORDS),
        *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
        *(r"\s?[^\s\p{L}\p{N}]+[\r\n]*", r"\s?[^\s\p{L}\p{N}]+[\r\n/]*"),
        *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
    ]
)
_ANY_WHITE_SPACE = r"\s+"
# Pre-tokenizers that work on each part alone, so that they may follow the split.
_LOCAL = {"ByteLevel", "Split", "Digits", "Punctuation"}


class Encoder:
    """A tokenizer for documents. ``cuts`` says whether long ones may be cut."""

    def __init__(self, tokenizer: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.encode_special_tokens = True  # text that looks like a special token stays text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, "dropout", None):
            self._tokenizer.model.dropout = None  # the same text gives the same ids
        # The greatest id, not the count: numbers may be left out.
        self.vocabulary = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        self.cuts = cuts_safely(self._tokenizer)

    def encode(self, texts: list[str]) -> Iterator[list[int]]:
        """The ids of each text, without special tokens."""
        for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield encoding.ids

    def pieces(self, text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
        """``text`` in pieces whose ids, one after the other, are those of the text. Each ends at the first
        safe cut after ``size`` characters."""
        start = 0
        while self.cuts and len(text) - start > size:
            found = _CUT.search(text, start + size - 1)
            if not found:
                break
            yield text[start : found.end()]
            start = found.end()
        yield text[start:] if start else text


@lru_cache(maxsize=1)
def encoder(file: str) -> Encoder:
    """That of a tokenizer.json, which stays as it is while a run lasts. One for each process: to read a large
    vocabulary takes half a second."""
    return Encoder(Path(file).read_text("utf-8"))


def cuts_safely(tokenizer: Any) -> bool:
    """Whether the proof above holds for this tokenizer."""
    return (
        _composes(_state(tokenizer.normalizer))
        and _splits(_state(tokenizer.pre_tokenizer))
        and not any(_reaches_over(token) for token in tokenizer.get_added_tokens_decoder().values())
    )


def _state(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as it stands in tokenizer.json; empty for none."""
    found: dict[str, Any] = json.loads(part.__getstate__()) if part else {}
    return found


def _composes(normalizer: dict[str, Any]) -> bool:
    if normalizer.get("type") == "Sequence":
        return all(_composes(item) for item in normalizer["normalizers"])
    return not normalizer or normalizer["type"] == "NFC"


def _splits(pre_tokenizer: dict[str, Any]) -> bool:
    if pre_tokenizer.get("type") == "Sequence":
        first, *rest = pre_tokenizer["pretokenizers"] or [{}]
    else:
        first, rest = pre_tokenizer, []
    if any(item["type"] not in _LOCAL for item in rest):
        return False
    if first.get("type") == "ByteLevel":  # its own expression is GPT-2's
        return bool(first["use_regex"]) and not first["add_prefix_space"]
    if first.get("type") != "Split" or (first["behavior"], first["invert"]) not in (
        ("Isolated", False),
        ("Removed", True),
    ):
        return False
    alternatives = _alternatives(first["pattern"].get("Regex", ""))
    return _ANY_WHITE_SPACE in alternatives and _ALTERNATIVES.issuperset(alternatives)


def _alternatives(expression: str) -> list[str]:
    """What ``|`` separates outside of parentheses; none of the alternatives we know has one in brackets."""
    found, depth = [""], 0
    for character in expression:
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            found.append("")
        else:
            found[-1] += character
    return found


def _reaches_over(token: Any) -> bool:
    """Whether an added token, found in the raw text, may stand across a cut or depend on what is beyond."""
    if re.search(r"\S\s", token.content):
        return True
    return not token.special and (token.lstrip or token.rstrip or token.single_word)
