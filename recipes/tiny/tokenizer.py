"""The byte-level BPE tokenizer: trained on the text itself, or any ``tokenizer.json``.

It is kept as Hugging Face files, so that TRL and transformers load the very same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.tiny.output import write_text
from recipes.tiny.settings import ConfigError

EOD = "<|endoftext|>"  # ends a document, and an answer
PAD = "<|pad|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SPECIAL = (EOD, PAD, USER, ASSISTANT)
FILE = "tokenizer.json"
# Every byte and every special token has its own: text of any kind can be encoded.
MIN_VOCAB = 256 + len(SPECIAL)

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    f"{USER}{{{{ message['content'] }}}}{{% else %}}"
    f"{ASSISTANT}{{{{ message['content'] }}}}{EOD}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def prompt(question: str) -> str:
    """The text after which the model is to answer ``question``."""
    return f"{USER}{question}{ASSISTANT}"


def train(texts: Iterable[str], vocab_size: int) -> Any:
    """A ``tokenizers.Tokenizer`` of at most ``vocab_size`` tokens; the same texts give the same one.

    Digits stay single, so that numbers are read and written place by place.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < MIN_VOCAB:
        raise ConfigError(f"tokenizer.vocab_size must be at least {MIN_VOCAB}, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load(path: Path) -> Any:
    """The tokenizer in ``path``: a ``tokenizer.json``, or a folder with one.

    Special tokens that it lacks are added. Raises ConfigError when there is none to read.
    """
    from tokenizers import Tokenizer

    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"there is no tokenizer {file}")
    try:
        return parse(file.read_text())
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{file} is not a tokenizer of {Tokenizer.__module__}: {error}") from None


def parse(text: str) -> Any:
    """The tokenizer whose ``tokenizer.json`` is ``text``, with our special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.add_special_tokens([token for token in SPECIAL if tokenizer.token_to_id(token) is None])
    return tokenizer


def save(tokenizer: Any, folder: Path) -> None:
    """Write the files that ``transformers.AutoTokenizer`` loads."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOD,
        "pad_token": PAD,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        "chat_template": CHAT_TEMPLATE,
    }
    write_text(folder / FILE, tokenizer.to_str() + "\n")
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")
