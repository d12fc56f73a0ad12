"""The converted model is the same function; a packed conversation is read as if it stood alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.tiny import checkpoint, convert, loop, model, packing, parallel, tokenizer
from tests.tiny import SENTENCES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

SHAPE = model.ModelSettings(layers=3, hidden=48, heads=6, kv_heads=2, ffn=80, seq_length=32, init_std=0.2)
TRAIN = loop.TrainSettings(
    steps=2, global_batch_size=1, micro_batch_size=1, lr=1e-3, min_lr=0.0, warmup_steps=0
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A random model, alone in its process group, and its checkpoint."""
    folder = tmp_path_factory.mktemp("convert")
    encoder = tokenizer.train(SENTENCES, 270)
    tokenizer.save(encoder, folder / "tokenizer")
    vocab_size = encoder.get_vocab_size()
    with parallel.connect(parallel.ParallelSettings()) as place:
        gpt = model.build(SHAPE, vocab_size, 1, seed=7)
        for weight in gpt.parameters():  # norms begin at one: a mix-up of theirs would not be seen
            torch.nn.init.normal_(weight, mean=0.3 if weight.dim() == 1 else 0.0, std=0.2)
        described = checkpoint.Description(SHAPE, vocab_size)
        optimizer = loop.make_optimizer(gpt, TRAIN)
        target = checkpoint.save(
            folder / "checkpoints",
            gpt,
            optimizer,
            checkpoint.State(step=1),
            place,
            described,
            folder / "tokenizer",
        )
        yield gpt.eval(), target


def logits(gpt: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
    with torch.no_grad():
        out: torch.Tensor = gpt(tokens, positions, mask)
    return out


def test_llama_gives_the_logits_of_megatron(saved: tuple[Any, Path]) -> None:
    gpt, folder = saved
    llama = convert.to_llama(folder)
    vocab_size = checkpoint.describe(folder).vocab_size
    assert vocab_size < model.padded_vocab(vocab_size), "the padding is to be cut off"
    tokens = torch.randint(vocab_size, (3, 32), generator=torch.Generator().manual_seed(1))
    ours = logits(gpt, tokens)[:, :, :vocab_size]
    with torch.no_grad():
        theirs = llama(input_ids=tokens).logits
    assert theirs.shape == ours.shape
    assert ours.std() > 0.5, "flat logits would agree with anything"
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_transformers_loads_the_tokenizer_and_its_template(saved: tuple[Any, Path]) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(saved[1] / "tokenizer")
    ours = tokenizer.load(saved[1] / "tokenizer")
    text = "def f(x): return 1234 # é\n"
    assert loaded(text, add_special_tokens=False).input_ids == ours.encode(text).ids
    assert loaded.decode(loaded(text).input_ids) == text
    chat = [{"role": "user", "content": "1+1="}]
    assert loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == tokenizer.prompt(
        "1+1="
    )
    assert (loaded.eos_token, loaded.pad_token) == (tokenizer.EOD, tokenizer.PAD)


def test_a_count_of_parameters_needs_no_model(saved: tuple[Any, Path]) -> None:
    gpt, folder = saved
    counted = sum(weight.numel() for weight in gpt.parameters())
    assert model.parameters(SHAPE, checkpoint.describe(folder).vocab_size) == counted


def test_packed_conversations_do_not_see_each_other(saved: tuple[Any, Path]) -> None:
    first, second = torch.arange(10, 20), torch.arange(30, 42)
    packed = torch.cat([first, second])[None]
    owner = torch.tensor([[1] * 10 + [2] * 12])
    together = logits(saved[0], packed, packing.forbidden(owner))
    torch.testing.assert_close(together[:, 10:], logits(saved[0], second[None]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[:, :10], logits(saved[0], first[None]), atol=1e-4, rtol=1e-4)
    crossed = logits(saved[0], packed)
    assert not torch.allclose(crossed[:, 10:], together[:, 10:], atol=1e-2)
