"""A cluster of this machine: what it writes, who belongs to it, and one that is started, scaled and stopped."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from raymlp.cli import run_command
from raymlp.core.errors import ConfigError, RaymlpError
from raymlp.runtime.cluster.certificates import make_certificate
from raymlp.runtime.cluster.layout import BUSY, FAULTS, HEAD_ID, HEAD_TYPE, PORTS, Cluster, Shape, check_folder, load
from raymlp.runtime.cluster.processes import MARK, Owner, belonging, end, is_of, send
from raymlp.runtime.cluster.start import Health, health, start, stop
from raymlp.runtime.ports import free_port, port_is_free

ENV = Path(__file__).resolve().parents[2] / "cluster" / "env"


def cluster_in(folder: Path, **shape: int) -> Cluster:
    return Cluster(folder, "mark", Shape(**shape), {name: 5_000 + place for place, name in enumerate(PORTS)})


def until(is_so: Callable[[], bool], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---------------------------------------------------------------------- what it writes


def test_ray_reads_the_autoscalers_config(tmp_path: Path) -> None:
    from ray.autoscaler._private.fake_multi_node import node_provider as provider
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader

    assert (HEAD_ID, HEAD_TYPE) == (provider.FAKE_HEAD_NODE_ID, provider.FAKE_HEAD_NODE_TYPE)
    file = tmp_path / "nodes.yaml"
    file.write_text(yaml.safe_dump(cluster_in(tmp_path, min_workers=1, max_workers=3, worker_cpus=2, worker_gpus=1, head_cpus=0).nodes()))
    config = FileConfigReader(str(file), skip_content_hash=True).get_cached_autoscaling_config()
    worker = config.get_node_type_configs()["worker"]
    assert (worker.min_worker_nodes, worker.max_worker_nodes) == (1, 3)
    assert worker.resources == {"CPU": 2, "GPU": 1, "object_store_memory": 200 << 20}
    assert config.get_idle_timeout_s() == 60
    assert config.get_max_num_worker_nodes() == 3


def test_nodes_have_the_settings_that_other_clusters_have() -> None:
    files = [line for name in ("faults", "train", "safety") for line in (ENV / f"{name}.env").read_text().splitlines()]
    settings = dict(line.split("=", 1) for line in files if line and not line.startswith("#"))
    assert settings.pop("RAY_AUTH_MODE") == "token"
    assert settings == FAULTS


def test_the_environment_points_to_no_other_cluster_and_holds_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-another")
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "7")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = cluster_in(tmp_path).environment()
    assert "RAY_ADDRESS" not in found
    assert "of-another" not in found.values()
    assert found["RAY_JOB_STOP_WAIT_TIME_S"] == "7", "a value of the user's wins"
    assert found["RAY_AUTH_MODE"] == "token", "but for this one"
    assert found["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert BUSY.items() <= found.items()
    assert MARK not in cluster_in(tmp_path).exports(), "else the shell that uses it would be stopped with it"


def test_a_record_is_read_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    cluster = cluster_in(tmp_path.resolve(), max_workers=5)
    cluster.save()
    assert load(tmp_path) == cluster
    (tmp_path / "cluster.json").write_text('{"mark": 1}')
    with pytest.raises(RaymlpError, match=r"cluster\.json cannot be read \(KeyError"):
        load(tmp_path)


def test_a_folder_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    assert check_folder(Path("/tmp/x/../y")) == Path("/tmp/y").resolve()
    with pytest.raises(ConfigError, match="has 64 characters; expected 36 at most"):
        check_folder(Path("/" + "a" * 63))


def test_workers_are_the_fewest_and_the_most() -> None:
    with pytest.raises(ConfigError, match="workers are 3 to 2"):
        Shape(3, 2)


def test_a_token_that_is_gone_is_missed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token is gone; expected the cluster's token"):
        health(cluster_in(tmp_path))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, ""),
        ({"processes": 0}, "nothing of it runs"),
        ({"agent": False}, "no job can be submitted"),
        ({"scales": False}, "no worker comes or goes"),
        ({"guarded": False}, "without a token"),
        ({"nodes": ("head",)}, "1 of 3 nodes are there"),
    ],
)
def test_each_part_that_is_missing_is_named(changed: dict[str, object], problem: str) -> None:
    well = {"processes": 9, "gcs": True, "agent": True, "scales": True, "guarded": True, "nodes": ("head", "a", "b")}
    found = Health(**{**well, **changed}).problems(Shape(2, 2))  # type: ignore[arg-type]
    assert problem in "; ".join(found)
    assert len(found) == bool(problem)


def test_the_certificate_and_its_key_are_their_owners_alone_and_go_together(tmp_path: Path) -> None:
    files = tmp_path / "node.crt", tmp_path / "node.key"
    make_certificate(*files, host="127.0.0.1")
    make_certificate(*files, host="127.0.0.1")  # a new start replaces them
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
    ssl.create_default_context(cafile=str(files[0]))


# ---------------------------------------------------------------------- who belongs to it


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(os.urandom(8).hex(), tmp_path.resolve())


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(*words: str, mark: str = "", **options: object) -> subprocess.Popen[bytes]:
        environment = {**({MARK: mark} if mark else {}), **os.environ}  # the first one is written over first
        started.append(subprocess.Popen(words, env=environment, **options))  # type: ignore[call-overload]
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_children_belong_and_strangers_do_not_though_they_read_its_files(
    owner: Owner, run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    (tmp_path / "log").write_text("")
    with (tmp_path / "log").open() as log:
        reader = run("sleep", "60", stdin=log)
    mine = run("sh", "-c", "sleep 60 & sleep 60", mark=owner.mark)
    other = run("sleep", "60", mark=f"{owner.mark}0")
    until(lambda: len(belonging(owner)) == 3)
    assert mine.pid in belonging(owner)
    assert not {reader.pid, other.pid, os.getpid()} & set(belonging(owner))
    assert end(owner, patience_s=20) == 3
    assert belonging(owner) == []
    assert (reader.poll(), other.poll()) == (None, None)


def test_a_process_that_wrote_its_title_over_its_environment_is_known_by_its_files(
    owner: Owner, run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    code = "import sys, time; from ray._raylet import setproctitle; setproctitle('t' * 9000); print(flush=True); time.sleep(60)"
    with (tmp_path / "log").open("w") as log:
        process = run(sys.executable, "-c", code, mark=owner.mark, stdout=log)
    until(lambda: (tmp_path / "log").stat().st_size > 0)
    assert owner.mark.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes()
    assert is_of(owner, process.pid)
    assert not is_of(Owner(owner.mark, tmp_path / "elsewhere"), process.pid)


def test_what_does_not_heed_sigterm_is_killed(owner: Owner, run: Callable[..., subprocess.Popen[bytes]]) -> None:
    deaf = run(sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
               mark=owner.mark, stdout=subprocess.PIPE)  # fmt: skip
    assert deaf.stdout
    deaf.stdout.readline()
    assert end(owner, patience_s=0.3) == 1
    assert deaf.wait() == -signal.SIGKILL


def test_a_number_that_somebody_else_has_by_now_gets_no_signal(owner: Owner, run: Callable[..., subprocess.Popen[bytes]]) -> None:
    stranger = run("sleep", "60")
    assert not send(owner, stranger.pid, signal.SIGKILL)
    assert stranger.poll() is None
    gone = run("true", mark=owner.mark)
    gone.wait()
    assert not send(owner, gone.pid, signal.SIGKILL)


# ---------------------------------------------------------------------- wrong input


def test_wrong_words_are_refused_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tempfile.mkdtemp(prefix="rc-", dir="/tmp")
    taken = free_port()
    with socket.socket() as server:
        server.bind(("127.0.0.1", taken))
        server.listen()
        cases = {
            "--workers is two; expected a number": ["--workers", "two"],
            "workers are 4 to 2": ["--workers", "4:2"],
            f"the port {taken} of 127.0.0.1 is taken": ["--dashboard-port", str(taken)],
        }
        for message, words in cases.items():
            assert run_command(["cluster", "start", "--folder", f"{place}/c", *words]) == 2
            assert message in " ".join(capsys.readouterr().err.split())
    assert run_command(["cluster", "start", "--folder", "/proc/nowhere"]) == 2
    assert "cannot be made or written" in capsys.readouterr().err
    Path(place, "mine").touch()
    os.chmod(place, 0o755)
    assert run_command(["cluster", "start", "--folder", place]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert os.stat(place).st_mode & 0o777 == 0o755, "somebody's own folder is left as it is"
    for verb in ("status", "stop", "env"):
        assert run_command(["cluster", verb, "--folder", f"{place}/none"]) == 2
        assert "holds no cluster" in capsys.readouterr().err
    assert not (Path(place) / "c" / "cluster.json").exists()
    shutil.rmtree(place)


def test_a_head_that_cannot_start_is_told_with_its_last_words_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "head_words", lambda self: ["sh", "-c", "sleep 60 & echo no room left; exit 3"])
    place = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
    with pytest.raises(RaymlpError, match="Ray's head did not start: no room left"):
        start(place, Shape())
    cluster = load(place)
    assert cluster
    assert belonging(cluster.owner) == []
    shutil.rmtree(place)


# ---------------------------------------------------------------------- one that runs


@pytest.mark.ray
@pytest.mark.xdist_group("cluster")
def test_a_cluster_starts_scales_and_stops_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a worker that says it has a GPU and comes when a task asks for one, and TLS."""
    place = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
    folder = ["--folder", str(place)]
    try:
        assert run_command(["cluster", "start", *folder, "--workers", "0:1", "--cpus", "1", "--gpus", "1", "--idle", "1", "--tls"]) == 0
        capsys.readouterr()
        cluster = load(place)
        assert cluster
        token = cluster.token_file.read_text()
        assert cluster.token_file.stat().st_mode & 0o777 == 0o600
        assert place.stat().st_mode & 0o777 == 0o700
        said = [Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes() for pid in belonging(cluster.owner)]
        assert not any(token.encode() in one for one in said)
        assert speaks_tls(cluster.ports["gcs"], cluster.certificate[0])
        with pytest.raises(ConfigError, match=r"processes runs in .*; expected none"):
            start(place, Shape())
        assert not any(listens_everywhere(pid) for pid in belonging(cluster.owner))

        assert run_command(["cluster", "env", *folder]) == 0
        shell = f"{capsys.readouterr().out}\nexec {sys.executable} -c {shlex.quote(GPU_TASK)}"
        (tmp_path / "mine.py").touch()
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=400, env=clean() | {"CODE": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        assert re.search(r"True devices 0 brings \[False, False, True\] nodes 2$", done.stdout.strip())
        until(lambda: len(health(cluster).nodes) == 1)  # it went when it was idle
        assert run_command(["cluster", "status", *folder]) == 0
        assert "head: 1 CPU" in capsys.readouterr().out
        assert token not in "".join(path.read_text(errors="replace") for path in place.rglob("*.log"))
    finally:
        found = load(place)
        ended = stop(found) if found else 0
    assert ended > 10
    assert found
    assert belonging(found.owner) == []
    assert all(port_is_free("", port) for port in found.ports.values())
    assert run_command(["cluster", "status", *folder]) == 1
    assert "nothing of it runs" in capsys.readouterr().err
    assert run_command(["cluster", "stop", *folder]) == 0
    assert "nothing of it ran" in capsys.readouterr().out
    shutil.rmtree(place)


GPU_TASK = """
import os, ray
from raymlp.runtime.growth import may_bring
ray.init(runtime_env={"working_dir": os.environ["CODE"]}, logging_level="ERROR", log_to_driver=False)
brings = [may_bring([{"GPU": 1.0}] * 2), may_bring([{"CPU": 2.0}]), may_bring([{"CPU": 1.0}, {"GPU": 1.0}])]
place = lambda: (os.getcwd(), os.listdir(), os.environ.get("CUDA_VISIBLE_DEVICES"))
here = ray.get(ray.remote(num_cpus=1)(place).remote(), timeout=150)
there = ray.get(ray.remote(num_gpus=1)(place).remote(), timeout=150)
assert here[0] != there[0], "what a node unpacks for itself takes away what another one stands in"
print(here[1] == there[1] == ["mine.py"], "devices", there[2], "brings", brings, "nodes", sum(node["Alive"] for node in ray.nodes()))
"""


def speaks_tls(port: int, certificate: Path) -> bool:
    """Whether the server there has this certificate."""
    trusting = ssl.create_default_context(cafile=str(certificate))
    trusting.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        return trusting.wrap_socket(plain, server_hostname="127.0.0.1").version() is not None


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def listens_everywhere(pid: int) -> bool:
    """Whether a process has a TCP socket that other machines reach."""
    sockets = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    for table, everywhere in (("tcp", "00000000"), ("tcp6", "0" * 32)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[place] for place in (1, 3, 9))
            if state == "0A" and local.startswith(f"{everywhere}:") and f"socket:[{inode}]" in sockets:
                return True
    return False


@pytest.mark.ray
@pytest.mark.xdist_group("cluster")
def test_what_a_start_that_was_killed_left_behind_is_stopped() -> None:
    place = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
    words = [sys.executable, "-m", "raymlp", "cluster", "start", "--folder", str(place)]
    starter = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: (found := load(place)) is not None and len(belonging(found.owner)) >= 2)
    starter.kill()
    starter.wait()
    found = load(place)
    assert found
    assert stop(found) >= 1
    until(lambda: not belonging(found.owner))
    shutil.rmtree(place)
