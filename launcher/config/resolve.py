"""Fill in ``${...}``: OmegaConf does it, errors name the key and the line it stands on."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
NAMES = ("art", "node", "oc.env", "oc.select", "oc.decode", "oc.create", "oc.dict.keys", "oc.dict.values")
MISSING = "???"
_ENV = re.compile(r"\$\{\s*oc\.env:\s*(\w+)")
SECRET_WORDS = {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS"}

# OmegaConf keeps its resolvers in one table per process: one composition at a time may change it.
_lock = threading.Lock()


def resolve(tree: Tree, art: ArtResolver | None) -> dict[str, Any]:
    """The tree's values with every interpolation filled in, in place.

    Raises UserError for one that cannot be, for a value left at ``???``, and whatever ``art`` raises, with
    the place of the interpolation.
    """
    texts = {path: text for path, text in _texts(tree.values, ()) if "${" in text or text == MISSING}
    for path, text in texts.items():
        if text == MISSING:
            key = ".".join(path)
            raise UserError(
                f"{key} has no value ({MISSING})",
                where=tree.mark(path).where,
                hint=f"give it one: {key}=VALUE",
            )
        _refuse_secret(path, text, tree)
    if not texts:
        return tree.values

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    filled: dict[KeyPath, Any] = {}
    failures: dict[KeyPath, UserError] = {}
    with _resolvers(art) as raised:
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
        if SECRET_WORDS & set(name.upper().split("_")):
            raise UserError(
                f"{'.'.join(path)} would write the secret ${name} into the job's files",
                where=tree.mark(path).where,
                hint=f"read {name} from the environment in the script",
            )


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, (*path, str(key)))


@contextmanager
def _resolvers(art: ArtResolver | None) -> Iterator[list[UserError]]:
    """``art`` and ``node`` are known inside and forgotten after; yields what ``art`` raises."""
    from omegaconf import OmegaConf
    from omegaconf.basecontainer import BaseContainer

    raised: list[UserError] = []

    def fill_art(name: object, field: object = "path") -> object:
        if art is None:
            return f"${{art:{name},{field}}}"
        try:
            return art(str(name), str(field))
        except UserError as error:
            raised.append(error)
            raise

    def fill_node(name: object) -> str:
        if name in NODE_PATHS:
            return NODE_PATHS[str(name)]
        guess = did_you_mean(str(name), NODE_PATHS) or f"; there are: {', '.join(NODE_PATHS)}"
        raised.append(UserError(f"the node has no folder {name!r}{guess}"))
        raise raised[-1]

    with _lock:
        before = BaseContainer._resolvers
        BaseContainer._resolvers = dict(before)
        try:
            OmegaConf.register_resolver("art", fill_art, replace=True, annotation_validation="off")
            OmegaConf.register_resolver("node", fill_node, replace=True, annotation_validation="off")
            yield raised
        finally:
            BaseContainer._resolvers = before


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
    if found := re.search(r"Environment variable '(.+?)' not found", message):
        name = found[1]
        return UserError(
            f"environment variable {name} is not set",
            hint=f"export {name}=..., or give a default: ${{oc.env:{name},DEFAULT}}",
        )
    if found := re.search(r"Interpolation key '(.+?)' not found", message):
        return UserError(
            f"{text!r}: there is no key {found[1]!r}{did_you_mean(found[1], dotted_keys(tree.values))}"
        )
    if found := re.search(r"Unsupported interpolation type (\S+)", message):
        return UserError(f"{text!r}: nothing is called {found[1]!r}{did_you_mean(found[1], NAMES)}")
    if "Recursive interpolation" in message:
        return UserError(f"{text!r} refers to itself")
    return UserError(f"{text!r}: {message}")
