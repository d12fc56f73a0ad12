"""Secrets of a job: by name in every file that we write, by value only in what SkyPilot is handed.

They come from a file of ``NAME=value`` lines, else from the launcher's environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from launcher.clusters import Profile
from launcher.errors import Refused, UserError, did_you_mean

if TYPE_CHECKING:
    from launcher.plan import Plan

# Handed on to the job wherever they are set: Hugging Face, NGC, S3, MLflow.
STANDARD = (
    "HF_TOKEN",
    "NGC_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
NGC_REGISTRY = "nvcr.io"
RAY_TOKEN = "RAY_AUTH_TOKEN"
RAY_AUTH = ("RAY_AUTH_MODE", RAY_TOKEN, "RAY_AUTH_TOKEN_PATH")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


def of(profile: Profile, image: str | None, file: Path | None) -> dict[str, str]:
    """The secrets of a job in ``image`` under ``profile``, by name.

    Raises Refused for one that the profile demands and nobody set, UserError for a file that is none.
    """
    known = {**os.environ, **(read(file) if file else {})}
    if absent := [name for name in profile.secrets if not known.get(name)]:
        guess = did_you_mean(absent[0], known)
        raise Refused(
            f"the profile {profile.name} needs the secret {absent[0]}, which is not set{guess}",
            hint=f"export {absent[0]}=..., or name a file of NAME=value lines: --secrets FILE",
        )
    names = dict.fromkeys([*profile.secrets, *STANDARD, *(read(file) if file else ())])
    found = {name: known[name] for name in names if known.get(name)}
    return {**found, **registry_login(image, found)}


def of_plan(plan: Plan, file: Path | None) -> dict[str, str]:
    """The secrets of a plan's job, by name: those of ``of``, and for a Ray cluster of several nodes what its
    nodes alone share, for otherwise it obeys whoever reaches its ports. It is another with every call, and of
    a managed job SkyPilot keeps it for the recoveries. Raises what ``of`` raises.

    Not where the job itself says how its Ray authenticates (the names are Ray 2.60's), and not on this
    machine, whose backend makes one for each attempt.
    """
    found = of(plan.profile, plan.image, file)
    alone = plan.spec.run.launch != "ray" or plan.nodes < 2 or plan.profile.backend != "sky"
    if alone or not {*found, *plan.spec.env, *plan.profile.env, *plan.env}.isdisjoint(RAY_AUTH):
        return found
    return {**found, RAY_TOKEN: token_hex(32)}


def registry_login(image: str | None, found: Mapping[str, str]) -> dict[str, str]:
    """SkyPilot's variables for logging in to NVIDIA's registry, when there is a key and a use for it.

    The user name is the registry's own for API keys (NGC's private registry guide).
    """
    key = found.get("NGC_API_KEY")
    if not key or not image or not image.removeprefix("docker:").startswith(f"{NGC_REGISTRY}/"):
        return {}
    return {
        "SKYPILOT_DOCKER_USERNAME": "$oauthtoken",
        "SKYPILOT_DOCKER_PASSWORD": key,
        "SKYPILOT_DOCKER_SERVER": NGC_REGISTRY,
    }


def login_for(registry: str, found: Mapping[str, str]) -> tuple[str, str] | None:
    """The user and the password that SkyPilot's variables among the secrets have for ``registry``."""
    if found.get("SKYPILOT_DOCKER_SERVER") != registry:
        return None
    return found.get("SKYPILOT_DOCKER_USERNAME", ""), found.get("SKYPILOT_DOCKER_PASSWORD", "")


def read(file: Path) -> dict[str, str]:
    """``NAME=value`` lines; empty ones and those that begin with ``#`` are passed over, quotes are taken off.

    Raises UserError, with file:line but never a value, for any other line.
    """
    try:
        lines = file.expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"secrets cannot be read: {error}", where=str(file)) from error
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if not match:
            raise UserError("not a NAME=value line", where=f"{file}:{number}")
        name, value = match.groups()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        found[name] = value[1:-1] if quoted else value
    return found
