"""Writes the serveConfigV2 of a RayService from a raymlp config, the same application that `raymlp deploy` declares:

    python cluster/k8s/endpoint.py v7=/storage/served/flights/v7 experiment=flights serve.max_replicas=16

`--write` puts it into serve/rayservice.yaml instead of on the screen; `make clusters` does so for the example.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from raymlp.config.loader import load_config
from raymlp.serve.application import application_of, user_config_of
from raymlp.serve.controller import SERVICE

FILE = Path(__file__).parent / "serve" / "rayservice.yaml"
EXAMPLE = ["v1=/storage/served/flights/v1", "experiment=flights", "runtime.storage=/storage", "serve.keys_file=/storage/keys.json",
           "serve.min_replicas=2", "serve.max_replicas=16"]  # fmt: skip


def serve_config(version: str, overrides: list[str]) -> dict[str, Any]:
    """What KubeRay gives Ray Serve. `version` is LABEL=FOLDER, the bundle that all nodes see. The revision is the label: the same words
    give the same text."""
    label, _, folder = version.partition("=")
    config = load_config(None, overrides)
    user_config = {**user_config_of({label: folder}, {label: 1.0}), "revision": label}
    application = application_of(config, user_config, [], runtime_env={})
    port = config.serve.grpc_port
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},  # noqa: S104 (of a pod)
        **({"grpc_options": {"port": port, "grpc_servicer_functions": [SERVICE]}} if port else {}),
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [application.model_dump(mode="json", exclude_unset=True, exclude={"runtime_env"})],
    }


def text_of(config: dict[str, Any]) -> str:
    """As the file holds it: YAML, the application's parts one a line."""
    return yaml.safe_dump(config, sort_keys=False, width=120)


def written(service: str, config: dict[str, Any]) -> str:
    """A RayService's text with another serveConfigV2."""
    lines = "".join(f"    {line}\n" for line in text_of(config).splitlines())
    return re.sub(r"  serveConfigV2: \|\n(?:    .*\n)+", lambda _: "  serveConfigV2: |\n" + lines, service)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--write"] or EXAMPLE
    found = serve_config(words[0], words[1:])
    if "--write" in sys.argv:
        FILE.write_text(written(FILE.read_text(), found))
    else:
        print(text_of(found), end="")
