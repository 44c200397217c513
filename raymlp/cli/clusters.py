"""Verbs of a cluster on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymlp.cli.command import cluster
from raymlp.cli.screens import complain, show_done

if TYPE_CHECKING:
    from raymlp.runtime.cluster.layout import Cluster

FOLDER = Path("~/.raymlp/cluster")
Folder = Annotated[Path, typer.Option("--folder", help="Where its token, record and logs lie. One folder, one cluster.")]


@cluster.command("start")
def start_cluster(
    folder: Folder = FOLDER,
    workers: Annotated[str, typer.Option(help="How many: 2, or 0:4 for workers that come when tasks wait and go when idle.")] = "2",
    cpus: Annotated[int, typer.Option(min=1, help="CPUs that each worker offers.")] = 2,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs that each worker says it has, to try out what asks for them.")] = 0,
    head_cpus: Annotated[int, typer.Option(min=0, help="CPUs that the head offers.")] = 1,
    idle: Annotated[float, typer.Option(min=1, help="Seconds without work after which a worker goes.")] = 60.0,
    object_store_mb: Annotated[int, typer.Option(min=80, help="Shared memory of each node, in MiB.")] = 200,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt between nodes, with a certificate made for this cluster.")] = False,
    dashboard_port: Annotated[int | None, typer.Option(min=1024, max=65535, help="Of the dashboard; any free one without it.")] = None,
) -> None:
    """Start a head and workers on this machine, reachable from this machine alone, with a token of their own."""
    from raymlp.runtime.cluster.layout import Shape
    from raymlp.runtime.cluster.start import start

    low, high = _range(workers)
    shape = Shape(low, high, cpus, gpus, head_cpus, idle, object_store_mb, tls)
    made = start(folder, shape, dashboard_port=dashboard_port)
    option = "" if folder == FOLDER else f" --folder {shlex.quote(str(folder))}"
    show_done(
        {
            "cluster": made.address,
            "dashboard": made.dashboard,
            "use it": f'eval "$(raymlp cluster env{option})"',
            "then": "raymlp submit train experiment=flights",
            "stop it": f"raymlp cluster stop{option}",
            "token": str(made.token_file),
            "logs": str(made.logs),
        }
    )


@cluster.command("env")
def cluster_environment(folder: Folder = FOLDER) -> None:
    """Print what a shell needs to use the cluster, to be read by eval. Names the token's file, and never the token."""
    for name, value in _found(folder).exports().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@cluster.command("status")
def cluster_status(folder: Folder = FOLDER) -> None:
    """Say what runs of it and what is wrong; exit code 1 when something is."""
    from raymlp.runtime.cluster.start import health

    found = _found(folder)
    now = health(found)
    problems = now.problems(found.shape)
    shown = {"cluster": found.address, "dashboard": found.dashboard, "processes": str(now.processes)}
    show_done({**shown, **{f"node {place}": node for place, node in enumerate(now.nodes)}}, title="it is well" if not problems else "found")
    for problem in problems:
        complain(problem)
    raise typer.Exit(bool(problems))


@cluster.command("stop")
def stop_cluster(
    folder: Folder = FOLDER,
    wait: Annotated[float, typer.Option(min=0, help="Seconds until what has not ended by itself is killed.")] = 15.0,
) -> None:
    """End all that was started, jobs and endpoint with it, and nothing else. Logs, token and record stay."""
    from raymlp.runtime.cluster.start import stop

    found = _found(folder)
    ended = stop(found, patience_s=wait)
    show_done({"ended": f"{ended} processes" if ended else "nothing of it ran", "logs": str(found.folder / "ray")})


def _found(folder: Path) -> Cluster:
    from raymlp.core.errors import ConfigError
    from raymlp.runtime.cluster.layout import load

    found = load(folder)
    if found is None:
        raise ConfigError(f"{folder} holds no cluster; expected one. Start it (raymlp cluster start), or give its --folder.")
    return found


def _range(workers: str) -> tuple[int, int]:
    """`2` and `0:4` as numbers."""
    from raymlp.core.errors import ConfigError

    low, _, high = workers.partition(":")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise ConfigError(f"--workers is {workers}; expected a number (2), or the fewest and the most (0:4).") from None
