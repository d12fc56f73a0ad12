"""The fingerprint of a run: of its recipe and of its inputs by content.

The launcher knows it before the run begins; for a stage of a pipeline, whose inputs are still to be made, the
agent finds it out. Both call this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def of(recipe: str, inputs: Mapping[str, str]) -> str:
    """64 hex digits of ``provenance.recipe_fingerprint`` and of every input's name and digest."""
    return hashlib.sha256(json.dumps([recipe, dict(inputs)], sort_keys=True).encode()).hexdigest()
