"""Follow the replicas of an endpoint through a step of load and through sleep, and draw it.

    python benchmarks/scaling.py [latency steady cost] [--out FOLDER] [--overload]
    python benchmarks/scaling.py --draw --out FOLDER

A model that takes five milliseconds a row, so that two cores can be outrun. A quiet stretch, a step of load, quiet again; `cost` begins and
ends with none. Of each preset: seconds from the step until the second replica answers, from quiet until it is gone, from the first request
until a sleeping endpoint answers, and the latency on the way. Delays of minutes are shortened to seconds, and said so in the picture.

`--overload`: one replica with a short queue, twice the requests that it can answer: how many are refused, how quickly, with what word,
and what becomes of those that are let in.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from load import Load, Sent, post, quantile, told
from small import KEY, NAME, PATH, body, make_bundle, make_config, prepare_environment

from raymlp.config.runtime import Runtime
from raymlp.config.scaling import PRESETS
from raymlp.core.records import Version
from raymlp.runtime.ports import free_port
from raymlp.serve.deploy import deploy, undeploy

QUIET_S, STEP_S, CALM_S = 3.0, 16.0, 16.0
RATE, WORKERS = 500.0, 24
SHORT_S = 8.0
"""Longest delay of a preset that is waited for."""


def running() -> int:
    """Replicas that run, as Ray Serve counts them."""
    from ray import serve

    application = serve.status().applications.get(NAME)
    return sum(int(part.replica_states.get("RUNNING", 0)) for part in application.deployments.values()) if application else 0


def trace(preset: str, bundle: Path, runtime: Runtime) -> dict[str, Any]:
    """One preset from quiet to quiet: requests, and replicas by time, both from the step on."""
    full = PRESETS[preset]  # type: ignore[index]
    short = {"downscale_delay_s": min(full.downscale_delay_s, SHORT_S), "cpus_per_replica": 0.1, "max_ongoing_requests": 64}
    config = make_config(runtime, port=free_port(), scaling=preset, **short)
    endpoint = deploy(config, Version("1", str(bundle)))
    seen: list[tuple[float, int]] = []
    sent: list[Sent] = []

    def watch(seconds: float, until: Any = None) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until and until()):
            seen.append((time.monotonic(), running()))
            time.sleep(0.1)

    if full.min_replicas == 0:
        watch(60, lambda: running() == 0)
    with Load(endpoint.url, lambda n: post(PATH, body(n), KEY), connections=1, per_second=5) as quiet:
        watch(QUIET_S)
    stepped = time.monotonic()
    with Load(endpoint.url, lambda n: post(PATH, body(n), KEY), connections=WORKERS, per_second=RATE) as load:
        watch(STEP_S)
    calmed = time.monotonic()
    with Load(endpoint.url, lambda n: post(PATH, body(n), KEY), connections=1, per_second=5) as rest:
        watch(CALM_S if full.min_replicas else 3.0)
    if full.min_replicas == 0:
        watch(60, lambda: running() == 0)
    ended = time.monotonic()
    sent = sorted([*quiet.sent, *load.sent, *rest.sent], key=lambda one: one.at)
    undeploy(NAME)
    first = quiet.sent[0]
    return {
        "preset": preset,
        "settings": {**full.model_dump(), "downscale_delay_s": short["downscale_delay_s"], "of": full.downscale_delay_s},
        "replicas": [(at - stepped, count) for at, count in seen],
        "sent": [(one.at - stepped, one.took_s * 1e3, one.status) for one in sent],
        "calmed_s": calmed - stepped,
        "ended_s": ended - stepped,
        "first_ms": first.took_s * 1e3,
        **told(sent),
    }


def times(found: dict[str, Any]) -> dict[str, float | None]:
    """Seconds from the step to one replica more, to the most there were, and from calm to the fewest."""
    counts = found["replicas"]
    before = max((count for at, count in counts if -1 <= at <= 0), default=0)
    most = max(count for _, count in counts)
    after = [(at - found["calmed_s"], count) for at, count in counts if at > found["calmed_s"]]
    least = min(count for _, count in after)
    return {
        "first_more_s": next((at for at, count in counts if at > 0 and count > before), None),
        "most_s": next((at for at, count in counts if at > 0 and count == most), None),
        "most": most,
        "least_s": next((at for at, count in after if count == least), None),
        "least": least,
    }


def draw(traces: list[dict[str, Any]], place: Path) -> None:
    """Replicas above, latency below, one column a preset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(2, len(traces), figsize=(4.2 * len(traces), 5.0), sharex="col", squeeze=False, layout="constrained")
    for column, found in enumerate(traces):
        above, below = axes[0][column], axes[1][column]
        counts = [count for _, count in found["replicas"]]
        above.step([at for at, _ in found["replicas"]], counts, where="post", color="#1f5fa8", linewidth=1.8)
        above.set_title(found["preset"], fontweight="bold")
        above.set_ylim(-0.2, 6.4)  # room for the words
        above.set_yticks(range(5))
        moments = times(found)
        words = f"first more after {moments['first_more_s']:.1f} s" if moments["first_more_s"] is not None else "none more"
        words += (
            f", {moments['most']} after {moments['most_s']:.1f} s\nback to {moments['least']}, {moments['least_s']:.1f} s after the load"
        )
        shortened = found["settings"]["of"] != found["settings"]["downscale_delay_s"]
        words += f"\n(waits {found['settings']['of']:g} s as preset, {SHORT_S:g} s here)" if shortened else ""
        above.text(0.02, 0.98, words, transform=above.transAxes, va="top", fontsize=8)
        good = [(at, took) for at, took, status in found["sent"] if status == 200]
        below.scatter([at for at, _ in good], [took for _, took in good], s=2, alpha=0.25, color="#777777", linewidths=0)
        seconds = sorted({int(at // 1) for at, _ in good})
        within = {second: [took for at, took in good if int(at // 1) == second] for second in seconds}
        below.plot([s + 0.5 for s in seconds], [quantile(within[s], 0.5) for s in seconds], color="#1f5fa8", linewidth=1.5, label="p50")
        below.plot([s + 0.5 for s in seconds], [quantile(within[s], 0.99) for s in seconds], color="#c0392b", linewidth=1.2, label="p99")
        below.set_yscale("log")
        below.yaxis.set_major_formatter("{x:g}")
        below.yaxis.set_minor_formatter(NullFormatter())
        below.set_xlabel("seconds since the step of load")
        for axis in (above, below):
            axis.axvspan(0, found["calmed_s"], color="#1f5fa8", alpha=0.08, linewidth=0)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("replicas")
    axes[1][0].set_ylabel("latency, ms")
    axes[1][0].legend(loc="upper right", fontsize=8)
    figure.savefig(place, dpi=80)


def overload(bundle: Path, runtime: Runtime) -> list[dict[str, Any]]:
    """One replica, at most eight requests at once and eight that wait: asked as much as it can answer, then far more."""
    settings = {"min_replicas": 1, "max_replicas": 1, "max_ongoing_requests": 8, "max_queued_requests": 8, "cpus_per_replica": 0.1}
    endpoint = deploy(make_config(runtime, port=free_port(), **settings), Version("1", str(bundle)))
    found = []
    for connections in (8, 16, 64, 256):
        with Load(endpoint.url, lambda n: post(PATH, body(n), KEY), connections=connections, per_second=1e6) as load:
            time.sleep(6)
        refused = [one for one in load.sent if one.status == 503]
        found.append(
            {
                "connections": connections,
                **told(load.sent),
                "answered_per_s": sum(one.status == 200 for one in load.sent) / 6,
                "refused_503": len(refused),
                "refused_p50_ms": quantile([one.took_s * 1e3 for one in refused], 0.5),
                "refused_p99_ms": quantile([one.took_s * 1e3 for one in refused], 0.99),
                "retry_after": sorted({one.retry_after for one in refused}),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    undeploy(NAME)
    return found


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("presets", nargs="*", metavar="PRESET", help="of latency, steady, cost; all without one")
    words.add_argument("--out", type=Path, default=Path("artifacts/scaling"))
    words.add_argument("--overload", action="store_true")
    words.add_argument("--draw", action="store_true", help="draw what lies in the folder into scaling.png")
    chosen = words.parse_args()
    prepare_environment()
    from raymlp.runtime.session import ray_session

    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.draw:
        draw(
            [json.loads(file.read_text()) for name in PRESETS if (file := chosen.out / f"{name}.json").exists()], chosen.out / "scaling.png"
        )
        return
    with tempfile.TemporaryDirectory(prefix="raymlp-scaling-") as folder:
        bundle = make_bundle(Path(folder) / "1", seed=1, slow_ms=5.0)
        runtime = Runtime(storage=f"{folder}/storage", num_cpus=4, object_store_mb=300)
        with ray_session(runtime):
            if chosen.overload:
                (chosen.out / "overload.json").write_text(json.dumps(overload(bundle, runtime), indent=1))
                return
            for preset in chosen.presets or PRESETS:
                found = trace(preset, bundle, runtime)
                (chosen.out / f"{preset}.json").write_text(json.dumps(found))
                shown = {name: value for name, value in found.items() if name not in ("sent", "replicas")}
                print(json.dumps({**times(found), **shown}), flush=True)


if __name__ == "__main__":
    main()
