"""Tune the MLP on the flights of 2013: 20 trials by raymlp beside the same trials in a plain Optuna loop, in alternating rounds.

    python benchmarks/tuning.py                     20 trials of at most 4 epochs, 3 rounds
    python benchmarks/tuning.py --trials 6 --rounds 1

All contenders try the same settings (the draws of seed 0) with the same net and training loop, each in a process of its own whose clock
starts at its first line, so that imports, and Ray's start and end, are in it; the snapshot is prepared before. `optuna` runs one trial
after the other in one process, `raymlp` two at a time with every trial to its end, `raymlp asha` stops those that fall behind. Medians.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402 (the clock comes first)
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

from raymlp.config.loader import load_config, with_overrides  # noqa: E402
from raymlp.config.schema import Config  # noqa: E402

CONTENDERS = ("optuna", "raymlp", "raymlp asha")
SPACE: dict[str, Any] = {
    "train.learning_rate": {"kind": "loguniform", "low": 1e-4, "high": 3e-2},
    "train.weight_decay": {"kind": "loguniform", "low": 1e-6, "high": 1e-2},
    "model.dropout": {"kind": "uniform", "low": 0.0, "high": 0.4},
    "model.hidden": {"kind": "choice", "values": [[128], [256, 128]]},
}


def config_of(trials: int, epochs: int, scheduler: str) -> Config:
    settings = {"num_samples": trials, "epochs": epochs, "scheduler": scheduler, "grace_epochs": 1, "max_concurrent": 2, "space": SPACE}
    config = load_config("flights", ["train.batch_size=2048"])
    return with_overrides(config, {f"tune.{name}": value for name, value in settings.items()})


def optuna_loop(config: Config) -> tuple[int, float]:
    """Epochs that were spent and the lowest validation loss, with the same draws as raymlp."""
    import optuna

    from raymlp import prepare
    from raymlp.train.trainer import fit_in_process
    from raymlp.tune.draws import RandomDraws
    from raymlp.tune.space import trial_config

    snapshot = _snapshot(prepare, config)
    draws = RandomDraws(config.tune)
    spent = 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal spent
        heard: list[float] = []
        draw = draws.draw(trial.number)
        assert draw is not None
        for key, value in draw.items():
            trial.set_user_attr(key, value)
        fit_in_process(trial_config(config, draw), snapshot, lambda metrics: heard.append(metrics["valid_loss"]))
        spent += len(heard)
        return min(heard)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    study.optimize(objective, n_trials=config.tune.num_samples)
    return spent, study.best_value


def _snapshot(prepare: Any, config: Config) -> Any:
    """The path of the prepared snapshot, found without Ray."""
    from raymlp.data.place import snapshot_root
    from raymlp.data.snapshot import find

    found = find(config.problem, config.data, snapshot_root(config.runtime))
    return found.path if found else prepare(config).path


def raymlp_study(config: Config) -> tuple[int, float]:
    """The same by `raymlp.tune`."""
    from raymlp import tune

    result = tune(config)
    return sum(trial["epochs"] for trial in result.trials), result.score


def run_one(contender: str, trials: int, epochs: int) -> None:
    """One contender, as the process that measures it."""
    config = config_of(trials, epochs, "asha" if contender == "raymlp asha" else "none")
    spent, best = (optuna_loop if contender == "optuna" else raymlp_study)(config)
    print(json.dumps({"seconds": time.perf_counter() - STARTED, "epochs": spent, "best": best}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return run_one(given.one, given.trials, given.epochs)
    from raymlp import prepare

    prepare(config_of(given.trials, given.epochs, "none"))
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for turn in range(given.rounds):
        for name in CONTENDERS if turn % 2 == 0 else reversed(CONTENDERS):
            words = [sys.executable, __file__, "--one", name, "--trials", str(given.trials), "--epochs", str(given.epochs)]
            out = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
            seen[name].append(json.loads(out.splitlines()[-1]))
            print(f"round {turn + 1}  {name:12} {seen[name][-1]}", flush=True)
    base = statistics.median(item["seconds"] for item in seen["optuna"])
    for name, items in seen.items():
        seconds, epochs, best = (statistics.median(item[key] for item in items) for key in ("seconds", "epochs", "best"))
        print(f"{name:12} {seconds:7.1f} s  {seconds / base:5.2f} of optuna  {epochs:5.0f} epochs  best loss {best:.4f}")
    return None


if __name__ == "__main__":
    main()
