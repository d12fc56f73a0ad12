"""Which images are a machine's and which a container's, and whether a registry has one: the OCI distribution
API, version 2."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from launcher.errors import Refused

TIMEOUT_S = 5.0
DOCKER_HUB = "registry-1.docker.io"
_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
# How SkyPilot 0.14.1 takes each cloud's images of whole machines, and its own tags for them (sky/clouds). No
# name of a container image is like one of these.
_MACHINE = {
    "aws": r"ami-[0-9a-f]+|skypilot:.+",
    "gcp": r"projects/[^/]+/.*(images|machineImages)/[^/]+|skypilot:.+",
    "azure": r"[^:/]+(:[^:/]+){3}|/CommunityGalleries/.+|/subscriptions/.+|skypilot:.+",
    "nebius": r"computeimage-.+",
}
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Name:
    """``registry/repository:tag``, as Docker reads it."""

    registry: str
    repository: str
    reference: str


def machines_of(text: str) -> tuple[str, ...]:
    """The clouds that take ``text`` as the image of a machine; none of a container image."""
    return tuple(cloud for cloud, pattern in _MACHINE.items() if re.fullmatch(pattern, text))


def parse(text: str) -> Name:
    """``docker:nvcr.io/nvidia/nemo:26.04`` in its parts; Docker Hub and ``latest`` where nothing is said."""
    rest = text.removeprefix("docker:")
    first, slash, more = rest.partition("/")
    own = slash and ("." in first or ":" in first or first == "localhost")
    registry, path = (first, more) if own else (DOCKER_HUB, rest)
    path, _, digest = path.partition("@")
    name, colon, tag = path.rpartition(":")
    repository, reference = (name, tag) if colon else (path, "latest")
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Name(registry, repository, digest or reference)


def exists(text: str, login: tuple[str, str] | None = None) -> bool:
    """Whether the registry has the image for ``login``, a user and a password, or else for anybody.

    Raises Refused when the registry cannot be asked.
    """
    name = parse(text)
    plain = name.registry.split(":")[0] in ("localhost", "127.0.0.1")
    url = f"{'http' if plain else 'https'}://{name.registry}/v2/{name.repository}/manifests/{name.reference}"
    try:
        status, challenge = _head(url, None)
        if status == 401 and challenge:
            status, _ = _head(url, _token(challenge, login))
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
            return False  # no token for this login
        raise Refused(f"{name.registry} could not be asked: {error}") from error
    return status == 200


def _head(url: str, token: str | None) -> tuple[int, str | None]:
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": ", ".join(_TYPES)})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("WWW-Authenticate")


def _token(challenge: str, login: tuple[str, str] | None) -> str:
    """The token that a registry hands to ``login`` or to anybody, from where its 401 says."""
    fields = dict(_CHALLENGE.findall(challenge))
    query = urllib.parse.urlencode({key: fields[key] for key in ("service", "scope") if key in fields})
    request = urllib.request.Request(f"{fields['realm']}?{query}")
    if login:
        basic = base64.b64encode(":".join(login).encode()).decode()
        request.add_header("Authorization", f"Basic {basic}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        values = json.load(answer)
    return str(values.get("token") or values["access_token"])
