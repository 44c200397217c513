"""Workers as processes of this machine: Ray's own provider, with a folder for each worker's copies of what jobs bring along.

Loaded by Ray's autoscaler, in its process. Ray's provider gives all nodes one folder, in which each unpacks a job's working directory anew:
it takes away what the job's driver and the other nodes' processes stand in.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Workers(FakeMultiNodeProvider):
    """The same, but for the folder."""

    def _create_node_with_resources_and_labels(self, *of_node: Any) -> None:
        plain = parameter.RayParams
        with self.lock:
            parameter.RayParams = partial(plain, runtime_env_dir_name=f"runtime_resources_{self._next_node_id + 1}")
            try:
                super()._create_node_with_resources_and_labels(*of_node)
            finally:
                parameter.RayParams = plain
