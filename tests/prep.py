"""A tokenizer, and bad data of every kind, for the tests of data preparation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

END = "<|endoftext|>"
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


# By stage: a good row, and bad lines with the reason that is to be counted.
_CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
_BROKEN = [
    (b'{"text": "torn', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"\xff\xfe{}", "not UTF-8"),
    (b"", "empty"),
    (b"[1, 2]", "not a JSON object"),
]
GOOD: dict[str, dict[str, Any]] = {
    "pretrain": {"text": "some text"},
    "sft": {"messages": _CHAT},
    "rl": {"responses_create_params": {"input": "2+2?"}},
}
BAD = {
    "pretrain": [
        *_BROKEN,
        (b'{"text": "bytes \xff inside"}', "not UTF-8"),
        (b'{"text": "half a pair \\ud800"}', "not UTF-8"),
        (b'{"text": " \\n"}', "empty"),
        (b'{"txt": "another column"}', "no text under 'text'"),
        (b'{"text": null}', "no text under 'text'"),
    ],
    "sft": [
        *_BROKEN,
        (b'{"messages": [{"role": "assistant", "content": "\xff"}]}', "not UTF-8"),
        (b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "not UTF-8"),
        (b'{"messages": []}', "no chat under 'messages'"),
        (b'{"chat": []}', "no chat under 'messages'"),
        (b'{"messages": [{"role": "assistant", "content": ""}]}', "the assistant says nothing"),
        (b'{"messages": [{"role": "assistant"}]}', "a message without content"),
        (b'{"messages": [{"content": "x"}]}', "a message without a role"),
    ],
    "rl": [
        *_BROKEN,
        (b'{"responses_create_params": {"input": "\xff"}}', "not UTF-8"),
        (b'{"responses_create_params": {"input": "\\ud800"}}', "not UTF-8"),
        (b'{"responses_create_params": {}}', "empty 'responses_create_params'"),
        (b'{"responses_create_params": {"input": []}}', "empty 'responses_create_params'"),
        (b'{"prompt": "another column"}', "no 'responses_create_params'"),
        (b'{"responses_create_params": {"input": NaN}}', "a value that JSON does not have"),
    ],
}


def write_bad(file: Path, stage: str, good: int = 20) -> dict[str, int]:
    """Every kind of bad line among good ones, all different; how many there are of each reason."""
    lines = [json.dumps({**GOOD[stage], "number": number}).encode() for number in range(good)]
    counts: dict[str, int] = {}
    for at, (line, reason) in enumerate(BAD[stage]):
        lines.insert(2 * at + 1, line)
        counts[reason] = counts.get(reason, 0) + 1
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return counts
