"""Alerts reach the log and the webhook; a webhook that fails is a warning without its secret."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from raymlp.config.monitor import Monitor
from raymlp.core.records import Finding, MonitorReport
from raymlp.monitor.alerts import notify

QUIET = Finding("feature drift", "age", "psi", 0.01, 0.2, 900, False)
LOUD = Finding("quality", "auc", "drop", 0.08, 0.02, 400, True, "auc 0.62 on the window")
REPORT = MonitorReport("2013-09", 900, 400, (QUIET, LOUD))


class Hook(HTTPServer):
    """Keeps what is posted and answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, dict[str, object]]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/s3cret"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_alert_is_logged_and_posted_with_its_numbers(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAYMLP_WEBHOOK_URL", hook.url)
    assert notify(REPORT, Monitor(), problem="flights")
    ((content_type, sent),) = hook.got
    assert content_type == "application/json"
    assert (sent["problem"], sent["window"], sent["rows"], sent["labelled"]) == ("flights", "2013-09", 900, 400)
    assert sent["text"] == "flights, window 2013-09: 1 alert: auc (quality)"
    assert sent["findings"] == [
        {
            "kind": "quality",
            "name": "auc",
            "statistic": "drop",
            "value": 0.08,
            "threshold": 0.02,
            "rows": 400,
            "note": "auc 0.62 on the window",
        }
    ]
    assert caplog.messages == ["flights, window 2013-09: quality, auc (drop 0.08, threshold 0.02, 400 rows); auc 0.62 on the window"]


def test_without_alerts_nothing_is_said(hook: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("RAYMLP_WEBHOOK_URL", hook.url)
    assert not notify(MonitorReport("w", 10, 0, (QUIET,)), Monitor(), problem="flights")
    assert (hook.got, caplog.messages) == ([], [])


def test_the_variable_is_the_one_that_is_set(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYMLP_WEBHOOK_URL", raising=False)
    monkeypatch.setenv("MY_HOOK", hook.url)
    assert not notify(REPORT, Monitor(), problem="flights")
    assert notify(REPORT, Monitor(webhook_env="MY_HOOK"), problem="flights")


@pytest.mark.parametrize("case", ["answers 500", "nobody there", "no web address"])
def test_a_failing_webhook_is_a_warning_without_the_secret(
    case: str, hook: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = 500
    urls = {"answers 500": hook.url, "nobody there": "http://127.0.0.1:9/s3cret", "no web address": "file:///tmp/s3cret"}
    monkeypatch.setenv("RAYMLP_WEBHOOK_URL", urls[case])
    assert not notify(REPORT, Monitor(), problem="flights")
    assert "alerts were not posted" in caplog.text
    assert "s3cret" not in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records)
