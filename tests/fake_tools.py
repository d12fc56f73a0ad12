"""Command line tools of clouds, as shell scripts that print what a test says and log what they are asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def says(answer: Any) -> str:
    """The shell for printing ``answer`` as JSON."""
    return f"/bin/cat <<'END'\n{json.dumps(answer)}\nEND\n"


def fails(message: str) -> str:
    return f"/bin/cat >&2 <<'END'\n{message}\nEND\nexit 1\n"


def install(folder: Path, name: str, answers: Mapping[str, str]) -> Path:
    """A program ``name`` in ``folder`` and its log, one line for each call. It runs the shell of the first
    pattern (of ``case``) that its arguments match, and needs no PATH."""
    folder.mkdir(exist_ok=True)
    log = folder / f"{name}.log"
    cases = "".join(f"{pattern})\n{shell};;\n" for pattern, shell in answers.items())
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "$*" >>\'{log}\'\ncase "$*" in\n{cases}*) exit 64;;\nesac\n')
    program.chmod(0o755)
    return log
