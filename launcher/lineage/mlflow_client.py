"""Reaching MLflow: quietly, one writer at a time where it is a file, and with errors a person can mend."""

from __future__ import annotations

import base64
import fcntl
import logging
import os
import socket
import sqlite3
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.artifacts.deadline import within
from launcher.errors import Refused, UserError

CHECK_SECONDS = 5.0

# Set while we call MLflow, unless the user has: without them it reports usage over the network, prints
# links, and tries a dead server for minutes.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_HINT = "`tracking:` in nemo-sky.yaml or MLFLOW_TRACKING_URI says where MLflow is"


@contextmanager
def connected(tracking: str) -> Iterator[Any]:
    """An ``mlflow.MlflowClient`` for ``tracking``. Raises Refused for whatever MLflow raises inside.

    A SQLite database is held by one process at a time, from its creation on: MLflow's own migrations and
    its look-then-create calls would race.
    """
    _refuse_credentials(tracking)
    try:
        with _settings(), _exclusive(tracking):
            yield _client(tracking)
    except UserError:
        raise
    except (ImportError, OSError, sqlite3.Error) as error:
        raise _refusal(tracking, error) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("mlflow", "requests", "sqlalchemy", "urllib3", "alembic"):
            raise _refusal(tracking, error) from error
        raise


def check(tracking: str) -> None:
    """Whether MLflow can be used, within 5 seconds. Raises Refused with a hint when not, and UserError for a
    URI that is none or that holds a password.
    """
    _refuse_credentials(tracking)
    scheme = urlsplit(tracking).scheme.split("+")[0]
    if scheme == "sqlite":
        _check_file(database_file(tracking), tracking)
    elif scheme in ("http", "https") or scheme in _DATABASE_PORTS:
        probe = _ask_health if scheme in ("http", "https") else _ask_port
        try:
            within(CHECK_SECONDS, lambda: probe(tracking))
        except TimeoutError as error:
            raise Refused(
                f"MLflow at {tracking} did not answer within {CHECK_SECONDS:.0f} seconds", hint=_HINT
            ) from error
    elif scheme != "databricks":
        raise UserError(
            f"{tracking!r} is not an MLflow tracking URI", hint="use http://HOST:PORT or sqlite:///PATH"
        )


def database_file(tracking: str) -> Path:
    """The file of a ``sqlite:///`` URI."""
    return Path(tracking.removeprefix("sqlite:///"))


def is_database_file(tracking: str) -> bool:
    return tracking.startswith("sqlite:///")


def _client(tracking: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

    # Imported earlier by somebody else, MLflow has set its level already.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking, registry_uri=tracking)


@contextmanager
def _settings() -> Iterator[None]:
    """Only while we call MLflow: a training script's own MLflow must not inherit them."""
    added = [key for key in _SETTINGS if key not in os.environ]
    os.environ.update({key: _SETTINGS[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def _exclusive(tracking: str) -> Iterator[None]:
    if not is_database_file(tracking):
        yield
        return
    file = database_file(tracking)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_credentials(tracking: str) -> None:
    parts = urlsplit(tracking)
    if "@" in parts.netloc:
        shown = f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}"
        raise UserError(
            f"the tracking URI {shown} holds a user or a password: it is written to files and logs",
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment instead",
        )


def _refusal(tracking: str, error: Exception) -> Refused:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    out_of_date = "out-of-date" in str(error)
    hint = f"run `mlflow db upgrade {tracking}`, after a backup" if out_of_date else _HINT
    return Refused(f"MLflow at {tracking} failed: {lines[0]}", hint=hint)


def _check_file(file: Path, tracking: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            if not os.access(file.parent, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
            return
        with open(file, "r+b"):
            pass
        connection = sqlite3.connect(file, timeout=1)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise _refusal(tracking, error) from error
    except (OSError, sqlite3.Error) as error:
        raise Refused(f"MLflow's database {file} cannot be used: {error}", hint=_HINT) from error


def _ask_health(tracking: str) -> None:
    request = urllib.request.Request(f"{tracking.rstrip('/')}/health", headers=_authorization())
    try:
        with urllib.request.urlopen(request, timeout=CHECK_SECONDS - 1) as reply:
            text = reply.read(100).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        hint = _HINT
        if error.code in (401, 403):
            hint = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise Refused(f"{tracking} answered {error.code} {error.reason}", hint=hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Refused(f"cannot reach MLflow at {tracking}: {reason}", hint=_HINT) from error
    if text != "OK":
        raise Refused(f"{tracking} answers, but not as MLflow does", hint=_HINT)


def _authorization() -> dict[str, str]:
    """What MLflow's own client would send."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _ask_port(tracking: str) -> None:
    parts = urlsplit(tracking)
    port = parts.port or _DATABASE_PORTS[parts.scheme.split("+")[0]]
    try:
        socket.create_connection((parts.hostname or "localhost", port), timeout=CHECK_SECONDS - 1).close()
    except OSError as error:
        raise Refused(f"cannot reach MLflow's database at {tracking}: {error}", hint=_HINT) from error
