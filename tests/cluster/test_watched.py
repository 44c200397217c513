"""A real Prometheus reads a real Ray and the files of a retrain; alerts fire and reach a webhook through a real Alertmanager."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymlp.config.runtime import Runtime
from raymlp.runtime.ports import free_port
from raymlp.runtime.textfile import RetrainMetrics
from raymlp.serve.export import RayExport
from raymlp.serve.metrics import ReplicaMetrics

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"
PATIENCE_S = 120
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@contextlib.contextmanager
def served(handler: Any) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def running(*words: object) -> Iterator[None]:
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_a_failing_endpoint_and_a_broken_retrain_reach_somebody(ray_runtime: Runtime, tmp_path: Path) -> None:
    if not all(shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")) or not Path("/usr/share/prometheus").is_dir():
        pytest.skip("Prometheus and Alertmanager are not installed (Debian: prometheus, prometheus-alertmanager)")
    import ray

    received: list[dict[str, Any]] = []

    class Webhook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    files = RetrainMetrics().write(Runtime(storage=str(tmp_path)), "flights", "failed").parent
    quiet_files = functools.partial(
        type("Files", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=files
    )
    with served(Webhook) as webhook, served(quiet_files) as exporter:
        alertmanager, prometheus = free_port(), free_port()
        text = re.sub(r"url_file: .*", f"url: http://127.0.0.1:{webhook}/", (FOLDER / "alertmanager.yml").read_text())
        (tmp_path / "alertmanager.yml").write_text(text.replace("group_wait: 30s", "group_wait: 1s"))
        rules = (FOLDER / "rules.yml").read_text()
        (tmp_path / "rules.yml").write_text(re.sub(r"for: \w+", "for: 0s", rules).replace("[5m]", "[30s]"))
        config = yaml.safe_load((FOLDER / "prometheus-machines.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
        node = ray.nodes()[0]
        config["scrape_configs"] = [
            {"job_name": "ray", "static_configs": [{"targets": [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"]}]},
            {
                "job_name": "raymlp-files",
                "metrics_path": "/retrain-flights.prom",
                "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}],
            },
        ]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        metrics = ReplicaMetrics("flights", "r")
        export = RayExport(metrics.registry)
        with (
            running(
                "prometheus-alertmanager", f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/am",
                f"--web.listen-address=127.0.0.1:{alertmanager}", "--cluster.listen-address=",
            ),
            running(
                "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
                f"--web.listen-address=127.0.0.1:{prometheus}", "--rules.alert.resend-delay=2s",
            ),
        ):  # fmt: skip
            end = time.monotonic() + PATIENCE_S
            alerts: dict[str, dict[str, Any]] = {}
            while time.monotonic() < end and not {"EndpointErrors", "RetrainFailed"} <= set(alerts):
                for status in (200, 200, 200, 503):
                    metrics.count("1", status, 0.003)
                export.tell()
                time.sleep(0.5)
                alerts = {alert["labels"]["alertname"]: alert for message in list(received) for alert in message["alerts"]}
        assert {"EndpointErrors", "RetrainFailed"} <= set(alerts), (os.listdir(tmp_path), received)
        assert alerts["EndpointErrors"]["labels"]["model"] == "flights"
        assert re.match(r"flights: \d+(\.\d+)?% of requests fail", alerts["EndpointErrors"]["annotations"]["summary"])
        assert alerts["RetrainFailed"]["labels"]["problem"] == "flights"
        assert "EndpointSlow" not in alerts
