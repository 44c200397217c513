"""What it costs to keep a version in a deployment of its own: the same model together and apart, one row a request.

    python benchmarks/placement.py

Champion and challenger share the traffic evenly, one replica each; one connection, then eight. At last the challenger's application is
taken away under load, and the champion stands in. Latencies in milliseconds.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from load import Load, post, told
from small import KEY, NAME, PATH, body, make_bundle, make_config, prepare_environment

from raymlp.config.runtime import Runtime
from raymlp.core.records import Version
from raymlp.runtime.ports import free_port
from raymlp.serve.apart import application_name
from raymlp.serve.controller import serve_client, undeclare
from raymlp.serve.deploy import deploy, set_versions, undeploy

SECONDS = 6.0


def main() -> None:
    prepare_environment()
    from raymlp.runtime.session import ray_session

    with tempfile.TemporaryDirectory(prefix="raymlp-placement-") as folder:
        bundles = {label: str(make_bundle(Path(folder) / label, seed=int(label))) for label in "12"}
        runtime, port = Runtime(storage=f"{folder}/storage", num_cpus=4, object_store_mb=300), free_port()
        with ray_session(runtime):
            for placement in ("together", "apart"):
                settings = {"min_replicas": 1, "max_replicas": 1, "cpus_per_replica": 0.1, "stand_in": "champion", "version_timeout_s": 3}
                config = make_config(runtime, port=port, placement=placement, **settings)
                endpoint = deploy(config, Version("1", bundles["1"]))
                set_versions(config, NAME, bundles, {"1": 0.5, "2": 0.5})
                for connections in (1, 8):
                    with Load(endpoint.url, lambda n: post(PATH, body(n), KEY), connections=connections, per_second=1e6) as load:
                        time.sleep(SECONDS)
                    found = {"placement": placement, "connections": connections, "per_s": len(load.sent) / SECONDS, **told(load.sent)}
                    print(json.dumps(found), flush=True)
            with Load(endpoint.url, lambda n: post(PATH, body(n), KEY), connections=8, per_second=100, keep_bodies=True) as load:
                time.sleep(1)
                undeclare(serve_client(), application_name(NAME, "2", bundles["2"]))
                time.sleep(8)
            versions = {version: sum(version.encode() in one.body for one in load.sent) for version in ('version":"1', 'version":"2')}
            print(json.dumps({"placement": "apart, challenger taken away", **told(load.sent), "answered by": versions}), flush=True)
            undeploy(NAME)


if __name__ == "__main__":
    main()
