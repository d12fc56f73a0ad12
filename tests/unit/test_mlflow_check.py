"""Whether a tracker can be used is known before anything is spent: databases, servers, credentials."""

from __future__ import annotations

import http.server
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import Refused, UserError
from launcher.lineage import mlflow_client, mlflow_view
from tests.served import served
from tests.unit.mlflow_events import (
    journal_of,
    started,
)


def test_check_of_a_database(tracking: str, tmp_path: Path) -> None:
    mlflow_view.check(tracking)
    mlflow_view.check(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert not (tmp_path / "new" / "folder" / "mlflow.db").exists()
    (tmp_path / "text").write_text("this is not a database, it is text" * 100)
    with pytest.raises(Refused, match="text cannot be used: file is not a database"):
        mlflow_view.check(f"sqlite:///{tmp_path}/text")
    with pytest.raises(Refused, match=r"text/mlflow\.db cannot be used"):
        mlflow_view.check(f"sqlite:///{tmp_path}/text/mlflow.db")
    with pytest.raises(Refused, match="not a database"):
        mlflow_view.apply(journal_of(started("r")), tracking=f"sqlite:///{tmp_path}/text", run_id="r")


@contextmanager
def server(status: int, body: bytes) -> Iterator[tuple[str, list[str | None]]]:
    """An HTTP server that gives one answer; its URI and the Authorization headers it saw."""
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(status if self.path == "/base/health" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with served(Handler) as address:
        yield f"http://{address}/base/", seen


def test_check_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200, b"OK") as (uri, seen):
        mlflow_view.check(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        mlflow_view.check(uri)
        assert seen == [None, "Basic YWRhOnNlY3JldA=="]
    with server(200, b"<html>welcome</html>") as (uri, _), pytest.raises(Refused, match="not as MLflow does"):
        mlflow_view.check(uri)
    with server(401, b"") as (uri, _), pytest.raises(Refused, match="answered 401") as caught:
        mlflow_view.check(uri)
    assert "MLFLOW_TRACKING_TOKEN" in str(caught.value.hint)


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "postgresql+psycopg2://127.0.0.1:{}/db"])
def test_check_of_a_server_that_is_not_there(form: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Refused, match=r"cannot reach MLflow.*refused") as caught:
            mlflow_view.check(form.format(unused.getsockname()[1]))
    assert "tracking:" in str(caught.value.hint)


def test_check_of_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlflow_client.CHECK_SECONDS <= 5
    monkeypatch.setattr(mlflow_client, "CHECK_SECONDS", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(Refused, match=r"timed out|did not answer"):
            mlflow_view.check(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - begun < 10, "far less than a connection waits by itself"


@pytest.mark.parametrize("uri", ["http://ada:secret@host:1", "postgresql://ada@host/db"])
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    for use in (mlflow_view.check, lambda it: mlflow_view.get_alias(it, "a", "b")):
        with pytest.raises(UserError, match="holds a user or a password") as caught:
            use(uri)
        assert "secret" not in str(caught.value)
        assert "ada" not in str(caught.value)


def test_what_is_no_tracking_uri() -> None:
    with pytest.raises(UserError, match="'ftp://x' is not an MLflow tracking URI"):
        mlflow_view.check("ftp://x")
    assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") is None
