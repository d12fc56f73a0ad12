"""Rewrite the tables in docs/ that come from the code. `--check` writes nothing and fails when one is stale.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from launcher import clusters, faults, runspec

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def profile_table() -> str:
    """The keys of a cluster profile."""
    rows = ["| key | type | meaning |", "|---|---|---|"]
    for name, key in clusters.KEYS.items():
        kinds = " or ".join(kind.__name__ for kind in key.types)
        allowed = f" One of {', '.join(f'`{item}`' for item in key.allowed)}." if key.allowed else ""
        rows.append(f"| `{name}` | {kinds} | {key.meaning}.{allowed} |")
    return "\n".join(rows)


def fault_table() -> str:
    """The faults that `nemo-sky check` knows by name."""
    rows = ["| fault | means |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {meaning} |" for name, meaning in faults.NAMES.items())])


TABLES: dict[str, Callable[[], str]] = {
    "runspec": runspec.fields_markdown,
    "profile": profile_table,
    "faults": fault_table,
}


def render(text: str) -> str:
    """The page with every generated block brought up to date."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]().strip()}\n{found[3]}", text)


def main() -> None:
    stale = []
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        wanted = render(text)
        if wanted != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(wanted, encoding="utf-8")
    if stale:
        print(f"{'stale' if '--check' in sys.argv else 'rewritten'}: {', '.join(stale)}")
        sys.exit(1 if "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
