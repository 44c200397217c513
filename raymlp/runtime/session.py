"""One Ray session for a job: joins the cluster it is told, or starts a local one and stops what it started."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymlp.config.runtime import Runtime
from raymlp.core.errors import RaymlpError
from raymlp.core.files import Place
from raymlp.runtime.ingress import fast_path_environment
from raymlp.runtime.store import place_of

log = logging.getLogger(__name__)
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TQDM_DISABLE": "1",
    "RAY_worker_niceness": "0",
}


@contextmanager
def ray_session(runtime: Runtime) -> Iterator[None]:
    """Ray is there inside the block. A session that is already running in this process is used and left running.

    Raises RaymlpError when the address cannot be reached.
    """
    for name, value in {**QUIET, **fast_path_environment(runtime)}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        quiet(runtime.verbose)
        yield
        return
    address = runtime.address or os.environ.get("RAY_ADDRESS")
    options = {"logging_level": logging.INFO if runtime.verbose else logging.ERROR, "log_to_driver": runtime.verbose}
    on_stop = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **options)
        else:
            cpus = runtime.num_cpus or max(4, os.cpu_count() or 1)
            ray.init("local", num_cpus=cpus, object_store_memory=runtime.object_store_mb << 20, include_dashboard=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise RaymlpError(f"{where} could not be started or reached: {error}. Set runtime.address.") from error
    quiet(runtime.verbose)
    if callable(on_stop) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_stop)  # `ray.init` puts a handler of its own in its place
    try:
        yield
    finally:
        ray.shutdown()


def stays(runtime: Runtime) -> bool:
    """Whether what is started outlives this process: it does on a cluster, and not in a local Ray."""
    return bool(runtime.address or os.environ.get("RAY_ADDRESS"))


def quiet(verbose: bool) -> None:
    """Keep the libraries' output off the screen unless it is asked for; warnings and errors stay in Ray's log files."""
    if verbose:
        return
    import ray._private.worker as driver
    from ray.data import DataContext

    driver.print_to_stdstream = lambda data, *_, **__: log.warning("ray: %s", " ".join(map(str, data.get("lines", ()))))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve", "lightning", "lightning.pytorch", "mlflow", "alembic", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def storage_root(runtime: Runtime) -> Place:
    """Where results are: an absolute folder, or a place in an object store."""
    place = place_of(runtime.storage)
    return place.expanduser().resolve() if isinstance(place, Path) else place
