"""Simulate experiments through the code that judges real ones: how often it is wrong under continuous looking, and what it finds.

    python benchmarks/experiment.py                       1,000 experiments of each kind
    python benchmarks/experiment.py --experiments 200 --kinds A/A

Every key is drawn: its arm, whether it fails (1 %), its latency (lognormal, median 10 ms), its conversion (10 %), which is the primary
metric. There is a look whenever there are 25 % more keys, from 200 to 20,000. `wrong` counts experiments in which at any look any
interval missed its true difference, or an arm was called better or worse that is not; `t-tests` those in which at any look a t-test at 5 %
on any metric and arm said that they differ. A bandit's regret is conversions lost beside giving all keys the best arm.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.experiment import Bandit, Business, ErrorRate, Experiment, LatencyQuantile
from raymlp.serve.experiment import bandit
from raymlp.serve.experiment.analysis import check_ratio, readings
from raymlp.serve.experiment.observations import Observations, Seen
from raymlp.serve.experiment.verdict import judge

CONVERSION, FAILING, LATENCY_MS, SPREAD = 0.10, 0.01, 10.0, 0.5
FIRST, MORE, LAST = 200, 1.25, 20_000


@dataclass(frozen=True)
class Kind:
    """What the arms are like: additions to the control's conversion, errors and latency, one an arm beside it; the shares."""

    conversion: tuple[float, ...] = (0.0,)
    errors: tuple[float, ...] = (0.0,)
    slower: tuple[float, ...] = (0.0,)
    weights: tuple[float, ...] | None = None
    bandit: bool = False
    lost: float = 0.0
    """Share of the first arm's keys that never reach the log."""

    @property
    def settings(self) -> Experiment:
        guards = (ErrorRate(),) if self.bandit else (ErrorRate(), LatencyQuantile())
        return Experiment(
            versions=tuple(f"{place + 2}" for place in range(len(self.conversion))),
            weights=self.weights,
            primary=Business(column="paid", margin=0.1),
            guard_rails=guards,
            bandit=Bandit(floor=0.05) if self.bandit else None,
        )


SAME3 = (0.0, 0.0)
KINDS = {
    "A/A": Kind(),
    "A/A 90:10": Kind(weights=(0.1,)),
    "A/A/A": Kind(SAME3, SAME3, SAME3),
    "A/A/A bandit": Kind(SAME3, SAME3, SAME3, bandit=True),
    "conversion 10 -> 13 %": Kind((0.03,)),
    "10, 11.5, 13 %": Kind((0.015, 0.03), SAME3, SAME3),
    "10, 11.5, 13 % bandit": Kind((0.015, 0.03), SAME3, SAME3, bandit=True),
    "10 -> 13 %, latency +30 %": Kind((0.03,), slower=(0.3,)),
    "10 -> 13 %, errors 1 -> 3 %": Kind((0.03,), (0.02,)),
    "10 % lost": Kind(lost=0.1),
}


@dataclass(frozen=True)
class Ended:
    """Whether any interval ever missed, a verdict was ever wrong, the ratio was doubted, a t-test alarmed; the first look with a choice,
    and the choice; conversions lost."""

    missed: bool
    wrong: bool
    doubted: bool
    t_test: bool
    keys: int | None
    choice: int | None
    regret: float
    most: int
    """The arm with the largest share at the end."""


def looks() -> Iterator[int]:
    total = float(FIRST)
    while total < LAST:
        yield int(total)
        total *= MORE
    yield LAST


def simulate(kind: Kind, seed: tuple[int, ...]) -> Ended:
    """One experiment, from its first key to its last look."""
    rng, settings = np.random.default_rng(seed), kind.settings
    rates = np.array([CONVERSION, *(CONVERSION + more for more in kind.conversion)])
    failing = np.array([FAILING, *(FAILING + more for more in kind.errors)])
    slower = np.array([1.0, *(1 + more for more in kind.slower)])
    shares, current = [list(settings.shares)], list(settings.shares)
    arm, stretch = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    paid, failed, latency = np.zeros(0), np.zeros(0), np.zeros(0)
    missed = wrong = doubted = t_test = False
    keys: int | None = None
    choice: int | None = None
    changed = 0
    for total in looks():
        new = rng.choice(len(rates), size=total - len(arm), p=current)
        if kind.lost:
            new = new[(new != 1) | (rng.random(len(new)) >= kind.lost)]
        arm, stretch = np.concatenate([arm, new]), np.concatenate([stretch, np.full(len(new), len(shares) - 1)])
        paid = np.concatenate([paid, rng.random(len(new)) < rates[new]])
        failed = np.concatenate([failed, rng.random(len(new)) < failing[new]])
        latency = np.concatenate([latency, LATENCY_MS * slower[new] * np.exp(SPREAD * rng.normal(size=len(new)))])
        time = np.arange(len(arm), dtype=np.float64)
        requests = tuple(np.bincount(arm, minlength=len(rates)).tolist())
        seen = Observations(
            np.array(shares), requests, Seen(failed, arm, stretch, time), Seen(latency, arm, stretch, time),
            {"paid": Seen(paid, arm, stretch, time)},
        )  # fmt: skip
        found, ratio = readings(seen, settings), check_ratio(seen)
        outcome = judge(found, ratio, settings, [str(place) for place in range(len(rates))])
        doubted |= ratio.is_off(settings.ratio_alpha)
        p95 = LATENCY_MS * np.exp(SPREAD * 1.6448536)
        truths = [rates - rates[0], failing - failing[0], p95 * (slower - 1)]
        for reading_row, truth in zip(found, truths, strict=False):
            for reading in reading_row:
                missed |= not reading.effect.low <= truth[reading.arm] <= reading.effect.high
        for verdict in outcome.verdicts:
            gain, harm = rates[verdict.arm] - rates[0], failing[verdict.arm] > failing[0] or slower[verdict.arm] > 1
            wrong |= verdict.call == "better" and (gain <= 0 or harm)
            wrong |= verdict.call == "worse" and gain >= 0 and not harm
        t_test |= any(_t(values[arm == 0], values[arm == place]) for values in (paid, failed, latency) for place in range(1, len(rates)))
        if keys is None and outcome.choice is not None:
            keys, choice = total, outcome.choice
        if settings.bandit and total - changed >= settings.bandit.min_keys and total < LAST:
            changed = total
            rewards = bandit.rewards(seen, settings.primary)
            current = list(bandit.shares(rewards, current, settings.bandit, seed=int(rng.integers(1 << 31))))
            shares.append(current)
    return Ended(missed, wrong, doubted, t_test, keys, choice, float((rates.max() - rates[arm]).sum()), int(np.argmax(current)))


def _t(old: NDArray[np.float64], new: NDArray[np.float64]) -> bool:
    spread = old.var() / max(len(old), 1) + new.var() / max(len(new), 1)
    return min(len(old), len(new)) > 30 and spread > 0 and abs(new.mean() - old.mean()) > 1.96 * np.sqrt(spread)


def run(name: str, experiments: int, seed: int = 0, mapped: Callable[..., Any] = map) -> list[Ended]:
    """Many experiments of a kind; `mapped` as `map`."""
    return list(mapped(partial(simulate, KINDS[name]), [(seed, list(KINDS).index(name), number) for number in range(experiments)]))


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1_000)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="of: " + ", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    table = Table(
        "arms",
        "an interval missed",
        "wrong verdict",
        "ratio doubted",
        "t-tests alarm",
        "choice",
        "keys, median",
        "regret, mean",
        "largest share",
    )
    with ProcessPoolExecutor(asked.workers) as pool:
        for name in (name for name in KINDS if name in asked.kinds):
            ended = run(name, asked.experiments, asked.seed, partial(pool.map, chunksize=10))
            table.add_row(name, *summary(ended))
            print(name, *summary(ended), sep=" | ", flush=True)
    Console(width=160).print(table)


def summary(ended: list[Ended]) -> list[str]:
    """The columns of the table."""
    choices = {choice: sum(one.choice == choice for one in ended) for choice in {one.choice for one in ended}}
    told = ", ".join(
        f"{'none' if c is None else f'arm {c}'} {n / len(ended):.1%}" for c, n in sorted(choices.items(), key=lambda kv: -kv[1])
    )
    decided = [one.keys for one in ended if one.keys is not None]
    return [
        f"{np.mean([one.missed for one in ended]):.1%}",
        f"{np.mean([one.wrong for one in ended]):.1%}",
        f"{np.mean([one.doubted for one in ended]):.1%}",
        f"{np.mean([one.t_test for one in ended]):.1%}",
        told,
        f"{np.median(decided):,.0f}" if decided else "-",
        f"{np.mean([one.regret for one in ended]):,.1f}",
        ", ".join(f"arm {arm} {np.mean([one.most == arm for one in ended]):.0%}" for arm in sorted({one.most for one in ended})),
    ]


if __name__ == "__main__":
    main()
