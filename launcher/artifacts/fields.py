"""``${art:NAME,FIELD}`` in configs: a field of an input's manifest.

FIELD is ``path`` (the default), ``name``, ``version``, ``type``, ``uri``, ``digest``, or a field of the
metadata, with or without ``metadata.`` before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.artifacts.manifest import Manifest
from launcher.artifacts.types import EXTRA
from launcher.errors import Refused, UserError, did_you_mean

# Where the agent puts inputs; it replaces this token by the folder on its node.
INPUTS_TOKEN = "$NEMO_SKY_INPUTS"

_FIELD = re.compile(r"\$\{\s*art:\s*([^},]*?)\s*(?:,\s*([^}]*?)\s*)?\}")


def resolve_art_fields(
    values: Any, manifests: Mapping[str, Manifest | None], paths: Mapping[str, str], final: bool = False
) -> Any:
    """A copy of ``values`` (mappings, lists, scalars) with the fields of the inputs filled in.

    ``manifests`` has a key for every input of the stage; its value is None while the version is not known,
    or when the input is a folder. ``paths`` says where inputs are; one that is absent there gets the token
    that the agent replaces. A text that is one field and nothing else takes the field's own type. A field
    of an unknown manifest stays as it is written, or with ``final`` raises Refused: nobody will fill it in
    later. Raises UserError, naming the key, for an input or a field that does not exist.
    """

    def walk(value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(item, f"{where}.{key}" if where else str(key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(item, f"{where}[{at}]") for at, item in enumerate(value)]
        if not isinstance(value, str) or "art:" not in value:
            return value
        if whole := _FIELD.fullmatch(value):
            return look_up(whole, where)
        return _FIELD.sub(lambda match: str(look_up(match, where)), value)

    def look_up(match: re.Match[str], where: str) -> Any:
        name, wanted = match.group(1), match.group(2) or "path"
        if name not in manifests and name not in paths:
            known = {*manifests, *paths}
            raise UserError(
                f"{where}: {match.group()} names no input of this stage{did_you_mean(name, known)}",
                hint=f"its inputs are {', '.join(sorted(known))}" if known else "it has no inputs",
            )
        if wanted == "path":
            return paths.get(name, f"{INPUTS_TOKEN}/{name}")
        manifest = manifests.get(name)
        if manifest is not None:
            return _field(manifest, wanted, f"{where}: {match.group()}")
        if final:
            raise Refused(
                f"{where}: {match.group()}: the input {name!r} is a folder and has no {wanted!r}",
                hint="give an artifact as the input, or write the value itself into the config",
            )
        return match.group()

    return walk(values, "")


def _field(manifest: Manifest, wanted: str, where: str) -> Any:
    metadata = {**dict(manifest.metadata.get(EXTRA) or {}), **manifest.metadata}
    own: dict[str, Any] = {
        "name": manifest.name,
        "version": manifest.version,
        "type": manifest.type,
        "uri": manifest.uri,
        "digest": manifest.digest,
    }
    known = {**metadata, **own, **{f"metadata.{key}": value for key, value in metadata.items()}}
    if wanted not in known:
        raise UserError(
            f"{where}: {manifest.uri} has no field {wanted!r}{did_you_mean(wanted, known)}",
            hint=f"its fields are path, {', '.join(sorted({**metadata, **own}))}",
        )
    return known[wanted]
