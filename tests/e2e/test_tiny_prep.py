"""Text to data: nothing lost, nothing invented, the same bytes every time."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.tiny import arithmetic, binidx, packing, prompts, raydata, text, tokenizer
from recipes.tiny.data.prep.pretrain import prep
from recipes.tiny.data.prep.rl import prep as rl_prep
from recipes.tiny.data.prep.sft import prep as sft_prep
from recipes.tiny.settings import ConfigError

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)

GOOD = {
    f"pkg/m{n}.py": f'"""Module {n}."""\n\n\ndef f{n}(x):\n    """Return {n} times x."""\n' for n in range(40)
}
COPIES = {f"copy{n}.py": GOOD[f"pkg/m{n}.py"] for n in range(8)}


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A small Ray of this test module's own."""
    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    # The workers import recipes too.
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    before = logging.getLogger().handlers[:]
    with raydata.session():
        yield
    logging.getLogger().handlers[:] = before
    patch.undo()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty good documents, eight of them twice, bad ones of each kind, and JSONL good and bad."""
    root = tmp_path / "text"
    for name, content in {**GOOD, **COPIES, "empty.py": " \n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "latin.py").write_bytes(b"# caf\xe9\n")
    (root / "gone.py").symlink_to(root / "nowhere.py")
    lines = [json.dumps({"text": "x = 1 # <|endoftext|>\n"}), "{not json", json.dumps({"body": "y"}), ""]
    (root / "more.jsonl").write_text("\n".join(lines) + "\n" + json.dumps({"text": "\ud800"}) + "\n")
    return root


def settings_for(folder: Path, output: Path, on_bad: str = "skip") -> prep.Settings:
    return prep.Settings(
        output=output,
        source=text.Source(path=str(folder), pattern="**/*.*"),
        tokenizer=prep.TokenizerSettings(vocab_size=300),
        splits=prep.SplitSettings(valid=0.2, test=0.2),
        on_bad=on_bad,
    )


def prepare(settings: prep.Settings) -> prep.Summary:
    units = text.units(settings.source, settings.seed)
    encoder = prep.make_tokenizer(settings, units)
    summary = prep.tokenise(settings, units, encoder)
    tokenizer.save(encoder, settings.output / "tokenizer")
    return summary


def texts_of(output: Path) -> dict[str, list[str]]:
    """Every document of the shards, decoded, by split."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    decoder = tokenizer.load(output / "tokenizer")
    eod = decoder.token_to_id(tokenizer.EOD)
    found: dict[str, list[str]] = {}
    for split in binidx.SPLITS:
        found[split] = []
        for prefix in binidx.read_blend(output, split)[0]:
            for tokens in IndexedDataset(prefix):
                assert tokens[-1] == eod
                assert eod not in tokens[:-1], "a special token's text is text"
                found[split].append(decoder.decode(tokens[:-1].tolist(), skip_special_tokens=False))
    return found


def test_shards_hold_the_text_and_bad_documents_are_counted(ray: None, folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, tmp_path / "one")
    summary = prepare(settings)
    found = texts_of(settings.output)
    expected = [*GOOD.values(), *COPIES.values(), "x = 1 # <|endoftext|>\n"]
    assert sorted(itertools.chain(*found.values())) == sorted(expected)
    assert summary.bad == {
        "empty": 2,
        "not UTF-8": 2,
        "unreadable": 1,
        "not JSON": 1,
        "no text under 'text'": 1,
    }
    sets = [set(found[split]) for split in binidx.SPLITS]
    assert all(sets)
    assert sum(map(len, sets)) == len(set(expected)), "no text stands in two splits, copies included"
    counts = np.bincount(np.concatenate([binidx.read_tokens(p, 10**6) for p in _train(settings)]))
    shares = counts[counts > 0] / counts.sum()
    assert summary.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum())


def _train(settings: prep.Settings) -> list[str]:
    return binidx.read_blend(settings.output, "train")[0]


def test_the_same_text_gives_the_same_bytes(ray: None, folder: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "one", tmp_path / "two"]
    for output in outputs:
        prepare(settings_for(folder, output))
    first, second = (
        {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
        for output in outputs
    )
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_bad_documents_can_be_fatal(ray: None, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on_bad: skip leaves such out"):
        prepare(settings_for(folder, tmp_path / "one", on_bad="fail"))


def test_instruction_pairs_come_from_docstrings(ray: None, folder: Path, tmp_path: Path) -> None:
    source = text.Source(path=str(folder), pattern="**/*.py")
    settings = sft_prep.Settings(output=tmp_path / "out", tokenizer=tmp_path, source=source, pack_size=64)
    units = text.units(source, 1)
    pairs, bad = sft_prep.docstring_pairs(settings, units)
    assert (
        Counter((pair.question, pair.answer) for pair in pairs)[
            "What does pkg.m7.f7 do?", "Return 7 times x."
        ]
        == 1
    )
    assert bad == {"empty": 1, "not UTF-8": 1, "unreadable": 1}
    encoder = tokenizer.train(GOOD.values(), 300)
    few = [*pairs[:50], sft_prep.Pair("too long? " * 40, "yes", "train"), sft_prep.Pair("q", "a", "valid")]
    totals = sft_prep.write(settings, few, encoder, bad)
    assert bad["longer than pack_size"] == 1
    rows = packing.read(settings.output / "splits" / "train", 64, pad=1)
    assert totals.tokens["train"] == (rows.owner >= 0).sum()
    assert totals.pairs["train"] == sum(len(set(owner[owner >= 0])) for owner in rows.owner)


def test_files_are_a_sample_under_max_bytes(folder: Path) -> None:
    source = text.Source(path=str(folder), pattern="**/m*.py", max_bytes=500)
    chosen = text.units(source, 1)
    assert 0 < sum(Path(unit.path).stat().st_size for unit in chosen) <= 500
    assert chosen == text.units(source, 1)
    assert chosen != text.units(source, 2)
    long = text.Source(path=str(folder / "more.jsonl"), max_bytes=10)
    assert len(list(text.documents(text.units(long, 1)[0], "text"))) == 1, "whole lines, at least one"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (text.Source(path="/no/such/folder"), "there is no file or folder /no/such/folder"),
        (text.Source(path="/usr", pattern="*.nothing"), "no file in /usr matches '\\*.nothing'"),
        (text.Source(max_bytes=0), "max_bytes must be more than 0"),
    ],
)
def test_a_source_without_text_is_refused(source: text.Source, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text.units(source, 1)


def test_an_unreadable_file_is_a_bad_document(tmp_path: Path) -> None:
    (document,) = text.documents(text.Unit(str(tmp_path), "folder"), "text")
    assert document.bad == "unreadable: Is a directory"


def test_rl_asks_nothing_that_sft_was_taught() -> None:
    settings = sft_prep.Settings(output=Path(), tokenizer=Path())
    taught = {pair.question for pair in sft_prep.arithmetic_pairs(settings) if pair.split == "train"}
    split = arithmetic.by_split(rl_prep.Settings(output=Path()).arithmetic)
    asked = {problem.question for name in ("val", "test") for problem in split[name]}
    assert not taught & asked
    assert len({problem.question for found in split.values() for problem in found}) == 100 * 99


def test_rewards() -> None:
    assert arithmetic.reward(" 12 ", "12") == 1.0
    assert 0 < arithmetic.reward("13", "12") < arithmetic.reward("12", "12")
    assert arithmetic.reward("90", "12") < arithmetic.reward("13", "12")
    for nonsense in ("", "twelve", "-12", "12 12", "²", "9" * 50):
        assert arithmetic.reward(nonsense, "12") == 0.0


def test_a_bad_line_of_prompts_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(rl_prep.render({"question": "1+1=", "answer": 2, "split": "train"})[0]["line"] + "{}\n")
    with pytest.raises(ConfigError, match=r"train\.jsonl:2 must be JSON with prompt and answer"):
        prompts.read(file)


examples = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 8)).map(
        lambda sizes: packing.Example(list(range(2, 2 + sum(sizes))), [0] * sizes[0] + [1] * sizes[1])
    ),
    min_size=1,
    max_size=60,
)


@given(examples=examples, size=st.integers(20, 48))
def test_packing_keeps_every_conversation_and_every_answer(
    examples: list[packing.Example], size: int
) -> None:
    rows = packing.pack(examples, size)
    found = []
    for row in rows:
        assert len(row.tokens) == len(row.mask) <= size
        ends = [*row.starts[1:], len(row.tokens)]
        found += [(row.tokens[a:b], row.mask[a:b]) for a, b in zip(row.starts, ends, strict=True)]
    assert sorted(found) == sorted((item.tokens, item.mask) for item in examples)


@given(examples=examples)
def test_the_loss_counts_answers_only(examples: list[packing.Example]) -> None:
    size = 32
    for row in packing.pack(examples, size):
        length = len(row.tokens)
        tokens, mask = np.full((1, size), 1), np.zeros((1, size), dtype=np.float32)
        owner = np.full((1, size), -1, dtype=np.int32)
        tokens[0, :length], mask[0, :length] = row.tokens, row.mask
        owner[0, :length] = np.searchsorted(row.starts, np.arange(length), side="right")
        sample = packing.sample(packing.Rows(tokens, mask, owner), 0)
        counted = sample["loss_mask"].bool()
        assert sample["labels"][counted].tolist() == [
            t for t, m in zip(row.tokens, row.mask, strict=True) if m
        ]
        hidden = packing.forbidden(sample["owner"][None])[0, 0]
        for at in range(length):
            start = max(start for start in row.starts if start <= at)
            assert (~hidden[at]).nonzero().flatten().tolist() == list(range(start, at + 1))
