"""What the tests of configs share: a stage's config folder, and the refusal of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config import compose
from launcher.errors import UserError

Write = Callable[[str, str], Path]

DEFAULT = """\
seed: 1
train:
  lr: 1e-4
  iters: 100
  betas: [0.9, 0.95]
  peft: null
layers:
  - size: 8
  - size: 16
data:
  path: ${art:data,path}
"""


def refusal(folder: Path, *overrides: str, name: str = "default", **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        compose(folder, name, overrides, **options)
    return caught.value
