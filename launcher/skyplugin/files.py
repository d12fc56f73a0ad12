"""SkyPilot's list of plugins, ``~/.sky/plugins.yaml`` of the user who runs the API server: our line in it.

controller_wheel_path: ...             SkyPilot's keys (``sky/server/plugins.py`` of 0.14.1); what is not
plugins:                               ours is kept
- class: launcher.skyplugin.plugin.Plugin
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from launcher import runs
from launcher.errors import UserError
from launcher.skyplugin.names import CLASS


def path() -> Path:
    """Where the API server of this user looks."""
    return Path(os.environ.get("SKYPILOT_SERVER_PLUGINS_CONFIG") or "~/.sky/plugins.yaml").expanduser()


def is_listed(file: Path) -> bool:
    """Whether the file names our plugin. Raises UserError when it cannot be understood."""
    return any(item.get("class") == CLASS for item in _read(file).get("plugins") or [])


def add(file: Path) -> bool:
    """Name our plugin in the file; False when it was there. Raises UserError for a file that is none."""
    values = _read(file)
    listed = values.get("plugins") or []
    if any(item.get("class") == CLASS for item in listed):
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, {**values, "plugins": [*listed, {"class": CLASS}]})
    return True


def remove(file: Path) -> bool:
    """Take our plugin out of the file; False when it was not there. Raises UserError as ``add`` does."""
    values = _read(file)
    listed = values.get("plugins") or []
    rest = [item for item in listed if item.get("class") != CLASS]
    if len(rest) == len(listed):
        return False
    kept = {key: value for key, value in values.items() if key != "plugins"}
    if rest:
        kept["plugins"] = rest
    if kept:
        _write(file, kept)
    else:
        file.unlink()
    return True


def _write(file: Path, values: dict[str, Any]) -> None:
    runs.write_text(file, yaml.safe_dump(values, sort_keys=False))


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read: {error}", where=str(file)) from error
    values = {} if values is None else values
    listed = values.get("plugins") if isinstance(values, dict) else 0
    if not (listed is None or (isinstance(listed, list) and all(isinstance(one, dict) for one in listed))):
        raise UserError(
            "is no list of SkyPilot's plugins",
            where=str(file),
            hint="it holds `plugins:` with a list of `- class: MODULE.CLASS`",
        )
    assert isinstance(values, dict)
    return values
