"""Fill in ``${...}``: OmegaConf does it, errors name the key and the line it stands on."""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.config.files import KeyPath, dotted_keys
from launcher.config.tree import Tree
from launcher.errors import UserError, did_you_mean

# (input's name, field) -> value; see compose().
ArtResolver = Callable[[str, str], object]

NODE_PATHS = {
    "checkpoints": "$NEMO_SKY_CHECKPOINTS",
    "output": "$NEMO_SKY_OUTPUT",
    "inputs": "$NEMO_SKY_INPUTS",
    "work": "$NEMO_SKY_WORK",
}
# `mul`, `manifest` and `auto_mount` are Nemotron's: its cookbook's configs use them.
NAMES = (
    "art", "node", "mul", "manifest", "auto_mount",
    "oc.env", "oc.select", "oc.decode", "oc.create", "oc.dict.keys", "oc.dict.values",
)  # fmt: skip
MISSING = "???"
_ENV = re.compile(r"\$\{\s*oc\.env:\s*(\w+)")
_PLAIN = re.compile(r"[\w./:@+$-]+")
SECRET_WORDS = {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS"}

# OmegaConf keeps its resolvers in one table per process: one composition at a time may change it.
_lock = threading.Lock()


def resolve(
    tree: Tree,
    art: ArtResolver | None,
    *,
    node_env: Mapping[str, str | None] | None = None,
    draft: bool = False,
) -> dict[str, Any]:
    """The tree's values with every interpolation filled in, in place.

    ``node_env`` is for scripts that fill in ``${oc.env:NAME}`` on the node themselves: it names variables
    whose value is another one there, with the text that stands for it, or None where nothing does. Secrets
    then stay as they are written, for the script. A ``draft`` may lack what only a launch needs: variables
    that are not set and values left at ``???`` stay as they are written too.

    Raises UserError for what cannot be filled in, and whatever ``art`` raises, with the place of the
    interpolation.
    """
    texts = {path: text for path, text in _texts(tree.values, ()) if "${" in text or text == MISSING}
    if draft:
        texts = {path: text for path, text in texts.items() if text != MISSING}
    for path, text in texts.items():
        if text == MISSING:
            key = ".".join(path)
            raise UserError(
                f"{key} has no value ({MISSING})",
                where=tree.mark(path).where,
                hint=f"give it one: {key}=VALUE",
            )
        if node_env is None:
            _refuse_secret(path, text, tree)
    if not texts:
        return tree.values

    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    filled: dict[KeyPath, Any] = {}
    failures: dict[KeyPath, UserError] = {}
    with _resolvers(art, node_env, draft) as raised:
        try:
            config = OmegaConf.create(tree.values)
        except OmegaConfBaseException:
            raise _ill_formed(texts, tree) from None
        for path, text in texts.items():
            try:
                node = config
                for key in path:
                    node = node[int(key)] if OmegaConf.is_list(node) else node[key]
                plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
                filled[path] = plain
            except OmegaConfBaseException as error:
                if draft and isinstance(error, InterpolationToMissingValueError):
                    continue
                failures[path] = raised.pop() if raised else _explain(text, str(error), tree)
    if failures:
        raise _placed(_culprit(failures, texts), failures, tree)
    for path, value in filled.items():
        parent = tree.get(path[:-1])
        parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = value
    return tree.values


def _refuse_secret(path: KeyPath, text: str, tree: Tree) -> None:
    """A composed config is written to disk and shown in MLflow; a secret must be in neither."""
    for name in _ENV.findall(text):
        if _is_secret(name):
            raise UserError(
                f"{'.'.join(path)} would write the secret ${name} into the job's files",
                where=tree.mark(path).where,
                hint=f"read {name} from the environment in the script",
            )


def _is_secret(name: str) -> bool:
    return bool(SECRET_WORDS & set(name.upper().split("_")))


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, (*path, str(key)))


@contextmanager
def _resolvers(
    art: ArtResolver | None, node_env: Mapping[str, str | None] | None, draft: bool
) -> Iterator[list[UserError]]:
    """Our resolvers are known inside and forgotten after; yields what they raise."""
    from omegaconf import OmegaConf
    from omegaconf.basecontainer import BaseContainer

    raised: list[UserError] = []

    def fill_art(name: object, field: object = "path") -> object:
        return art(str(name), str(field)) if art else _written("art", name, field)

    def fill_env(name: object, *default: object) -> object:
        return _variable(str(name), default, node_env, draft)

    def told(fill: Callable[..., object]) -> Callable[..., object]:
        """OmegaConf keeps only an error's text: the error itself is kept here."""

        def filled(*words: object) -> object:
            try:
                return fill(*words)
            except UserError as error:
                raised.append(error)
                raise

        return filled

    ours: dict[str, Callable[..., object]] = {
        "art": fill_art,
        "node": _node_path,
        "mul": _product,
        "manifest": _of_manifest,
        "auto_mount": lambda *words: _written("auto_mount", *words),
        "oc.env": fill_env,
    }
    with _lock, warnings.catch_warnings():
        # `${oc.env:NAME,}` is an empty default, and OmegaConf reads it as one, with a warning.
        warnings.filterwarnings("ignore", "In the sequence", UserWarning)
        before = BaseContainer._resolvers
        BaseContainer._resolvers = dict(before)
        try:
            for name, fill in ours.items():
                OmegaConf.register_resolver(name, told(fill), replace=True, annotation_validation="off")
            yield raised
        finally:
            BaseContainer._resolvers = before


def _written(name: str, *words: object) -> str:
    """An interpolation as text again, for somebody else to fill in."""
    texts = ["null" if word is None else str(word) for word in words]
    # The first word is a name or an address, and never needs quotes.
    rest = [text if _PLAIN.fullmatch(text) or "${" in text else f"'{text}'" for text in texts[1:]]
    return f"${{{name}:{','.join([*texts[:1], *rest])}}}"


def _is_open(value: object) -> bool:
    """Whether a value is known on the node only, or not yet."""
    return isinstance(value, str) and ("${" in value or "$NEMO_SKY_" in value or value == MISSING)


def _variable(
    name: str, default: tuple[object, ...], node_env: Mapping[str, str | None] | None, draft: bool
) -> object:
    """``${oc.env:NAME,DEFAULT}``, with the rules of :func:`resolve`."""
    there = node_env or {}
    secret = _is_secret(name)
    if (text := there.get(name)) is not None:
        return text
    if name not in there and not secret and name in os.environ:
        return os.environ[name]
    if default and not secret:
        return None if default[0] is None else str(default[0])
    if name in there or secret or draft:
        return _written("oc.env", name, *default)
    raise UserError(
        f"environment variable {name} is not set",
        hint=f"export {name}=..., or give a default: ${{oc.env:{name},DEFAULT}}",
    )


def _node_path(name: object) -> str:
    if name in NODE_PATHS:
        return NODE_PATHS[str(name)]
    guess = did_you_mean(str(name), NODE_PATHS) or f"; there are: {', '.join(NODE_PATHS)}"
    raise UserError(f"the node has no folder {name!r}{guess}")


def _product(*factors: object) -> object:
    """``${mul:A,B}``."""
    if any(map(_is_open, factors)):
        return _written("mul", *factors)
    if len(factors) != 2 or not all(type(factor) in (int, float) for factor in factors):
        raise UserError(f"mul takes two numbers, not {', '.join(map(repr, factors))}")
    return factors[0] * factors[1]  # type: ignore[operator]


def _of_manifest(folder: object, key: object) -> object:
    """``${manifest:FOLDER,KEY}``: the text of a key of FOLDER/manifest.json, which data preparation wrote."""
    if _is_open(folder):
        return _written("manifest", folder, key)
    path = Path(str(folder)) / "manifest.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", hint="prepare the data first") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict) or key not in values:
        known = values if isinstance(values, dict) else ()
        raise UserError(f"{path} has no key {key!r}{did_you_mean(str(key), known)}")
    return str(values[key])


def _culprit(failures: Mapping[KeyPath, UserError], texts: Mapping[KeyPath, str]) -> KeyPath:
    """The first failure that is no mere echo of another key's."""
    for path in failures:
        echoed = (f"${{{'.'.join(other)}}}" in texts[path] for other in failures if other != path)
        if not any(echoed):
            return path
    return next(iter(failures))


def _placed(path: KeyPath, failures: Mapping[KeyPath, UserError], tree: Tree) -> UserError:
    """The same kind of error, with the key and its place."""
    error, mark = failures[path], tree.mark(path)
    source = "" if mark.where else f" ({mark.shown})"
    return type(error)(
        f"{'.'.join(path)}{source}: {error.message}", where=mark.where or error.where, hint=error.hint
    )


def _ill_formed(texts: Mapping[KeyPath, str], tree: Tree) -> UserError:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for path, text in texts.items():
        try:
            OmegaConf.create({"value": text})
        except OmegaConfBaseException:
            error = UserError(
                f"{text!r} is not a well-formed interpolation",
                hint="write ${key}, ${oc.env:NAME,DEFAULT}, ${art:INPUT,FIELD} or ${node:output}",
            )
            return _placed(path, {path: error}, tree)
    raise AssertionError("OmegaConf refused values that it takes one by one")


def _explain(text: str, message: str, tree: Tree) -> UserError:
    """OmegaConf's message in words that say what to do."""
    message = message.splitlines()[0]
    if found := re.search(r"Interpolation key '(.+?)' not found", message):
        return UserError(
            f"{text!r}: there is no key {found[1]!r}{did_you_mean(found[1], dotted_keys(tree.values))}"
        )
    if found := re.search(r"Unsupported interpolation type (\S+)", message):
        return UserError(f"{text!r}: nothing is called {found[1]!r}{did_you_mean(found[1], NAMES)}")
    if "Recursive interpolation" in message:
        return UserError(f"{text!r} refers to itself")
    return UserError(f"{text!r}: {message}")
