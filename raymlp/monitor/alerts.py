"""Telling someone: every alert goes to the log, and to a webhook where one is named."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from raymlp.config.monitor import Monitor
from raymlp.core.files import to_json
from raymlp.core.records import MonitorReport

log = logging.getLogger(__name__)
TIMEOUT_S = 5.0


def notify(report: MonitorReport, settings: Monitor, *, problem: str) -> bool:
    """Log each alert and post all of them as one JSON object; whether a webhook took them.

    The URL is read from the environment variable `settings.webhook_env`. A webhook that cannot be reached is a warning
    that names its host only, since such a URL is often itself the secret. No alerts: nothing is logged or posted.
    """
    if not report.alerts:
        return False
    for finding in report.alerts:
        measured = f"{finding.statistic} {finding.value:.4g}, threshold {finding.threshold:.4g}, {finding.rows:,} rows"
        log.warning("%s, window %s: %s, %s (%s); %s", problem, report.window, finding.kind, finding.name, measured, finding.note)
    url = os.environ.get(settings.webhook_env, "")
    return _post(url, payload(report, problem=problem)) if url else False


def payload(report: MonitorReport, *, problem: str) -> dict[str, Any]:
    """What the webhook gets. `text` is one line for chat services; `findings` holds each alert with its numbers."""
    fields = ("kind", "name", "statistic", "value", "threshold", "rows", "note")
    findings = [{field: getattr(finding, field) for field in fields} for finding in report.alerts]
    names = ", ".join(f"{finding.name} ({finding.kind})" for finding in report.alerts)
    return {
        "problem": problem,
        "window": report.window,
        "rows": report.rows,
        "labelled": report.labelled,
        "text": f"{problem}, window {report.window}: {len(findings)} alert{'s' * (len(findings) != 1)}: {names}",
        "findings": findings,
    }


def _post(url: str, content: dict[str, Any]) -> bool:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        log.warning("alerts were not posted: the webhook's address is not an http(s) URL")
        return False
    body, headers = to_json(content, indent=None).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310 (the scheme was checked)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
            return True
    except urllib.error.HTTPError as error:
        log.warning("alerts were not posted: the webhook at %s answered %d", parts.hostname, error.code)
    except (OSError, ValueError) as error:
        log.warning("alerts were not posted: the webhook at %s could not be reached (%s)", parts.hostname, type(error).__name__)
    return False
