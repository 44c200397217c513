"""Simulate rollouts through the policy that decides real ones: how often it is wrong, how often it finds a fault, and how soon.

    python benchmarks/rollout.py                       2,000 rollouts of each kind, the default settings
    python benchmarks/rollout.py --rollouts 200 --kinds equal errors --workers 2

Every request is drawn: which version answers, whether it fails, how long it takes, its score, and for half of them the label. There is a
look after every 25 requests at first and whenever there are 5 % more later, and a rollout goes on until the policy ends it. `identical`
serves one model under two names, `equal` two models that are as good as each other, and `on the bound` those without any tolerance and
without an early end. Each request has a key of its own, and with `users return` that of one of 50,000 users.

Beside the policy, on the same looks, a t-test at 5 % on each of error rate, latency and loss, as one would do by hand: it alarms when one
of them says that the challenger is worse.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from raymlp.config.rollout import Rollout
from raymlp.core.metrics import losses
from raymlp.serve.rollout.facts import BINS_PER_OCTAVE, Evidence, Histogram, Pair, Paired, Position, Scores, Step
from raymlp.serve.rollout.latency import REFERENCE_REQUESTS
from raymlp.serve.rollout.outlook import Traffic, outlook
from raymlp.serve.rollout.policy import decide, next_weight
from raymlp.serve.rollout.quality import RANKING_BLOCK, misranking

Floats = NDArray[np.float64]
FIRST_LOOK, MORE_PER_LOOK = 25, 0.05
LATENCY_MS, SPREAD = 10.0, 0.5
"""Median of the champion's latency and the deviation of its logarithm."""
CHAMPION_AUC, POSITIVE, OWN_NOISE = 0.75, 0.3, 0.1
"""The champion's AUC, the share of positives, and the variance of what a model has to itself beside the signal both see."""
LABELLED = 0.5
POOL_ROWS = 1 << 18
BINS = np.arange(-32, 400)
T_TEST = 1.96


@dataclass(frozen=True)
class Kind:
    """What the challenger is like beside a champion that fails in 1 % of its requests."""

    errors: float = 0.01
    slower: float = 1.0
    auc: float = CHAMPION_AUC
    identical: bool = False
    lost: float = 0.0
    """Share of the challenger's requests that never reach the log."""
    on_the_bound: bool = False
    """Nothing is tolerated, nothing promotes, and the rollout goes on for 50,000 requests: the most that chance can do."""
    users: int = 0
    """Keys that requests come from, all as busy; 0 gives each request its own."""


KINDS = {
    "identical": Kind(identical=True),
    "identical, users return": Kind(identical=True, users=50_000),
    "equal": Kind(),
    "on the bound": Kind(on_the_bound=True),
    "errors 1 % -> 3 %": Kind(errors=0.03),
    "latency +30 %": Kind(slower=1.3),
    "AUC -.03": Kind(auc=CHAMPION_AUC - 0.03),
    "10 % lost": Kind(lost=0.1),
}


@dataclass(frozen=True)
class Ended:
    """How a rollout ended, after how many requests, and whether the t-tests had called the challenger worse by then: any, errors alone."""

    action: str
    requests: int
    challenger_requests: int
    reason: str
    t_test: bool
    t_test_errors: bool


@lru_cache(maxsize=8)
def pools(auc: float, identical: bool) -> tuple[Floats, Floats, float]:
    """Differences of loss by row and of misranking by block to draw from, and the champion's mean loss.

    Both models see a signal x ~ N(d y, 1) with noise of their own and give the calibrated probability. Where both are equally good every
    difference is there with both signs, so that the pools' means are exactly 0.
    """
    rng = np.random.default_rng(0)
    reach = np.sqrt(2) * ndtri(CHAMPION_AUC)
    distance = reach * np.sqrt(1 + OWN_NOISE)
    noise = (distance / (np.sqrt(2) * ndtri(auc))) ** 2 - 1
    y = (rng.random(POOL_ROWS) < POSITIVE).astype(np.float64)
    signal = distance * y + rng.normal(size=POOL_ROWS)

    def probability(variance: float) -> Floats:
        score = signal + np.sqrt(variance) * rng.normal(size=POOL_ROWS)
        logit = (distance * score - distance**2 / 2) / (1 + variance) + np.log(POSITIVE / (1 - POSITIVE))
        return np.asarray(1 / (1 + np.exp(-logit)))

    old = probability(OWN_NOISE)
    new = old if identical else probability(noise)
    loss = losses("binary", y, new) - losses("binary", y, old)
    ranking = misranking(y, new) - misranking(y, old)
    if auc == CHAMPION_AUC:
        loss, ranking = np.concatenate([loss, -loss]), np.concatenate([ranking, -ranking])
    return loss, ranking, float(losses("binary", y, old).mean())


@lru_cache(maxsize=8)
def latency_shares(slower: float) -> Floats:
    """The chance of each of BINS."""
    edges = np.concatenate([BINS, [BINS[-1] + 1]]) / BINS_PER_OCTAVE * np.log(2)
    below = ndtr((edges - np.log(LATENCY_MS * slower)) / SPREAD)
    shares = np.diff(below)
    return np.asarray(shares / shares.sum())


@dataclass
class Drawn:
    """What one step of a simulated rollout has seen, by version."""

    weight: float
    requests: list[int] = field(default_factory=lambda: [0, 0])
    errors: list[int] = field(default_factory=lambda: [0, 0])
    latency: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(BINS)), dtype=np.int64))
    cells: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 10), dtype=np.int64))

    def draw(self, rng: np.random.Generator, kind: Kind, number: int) -> None:
        """`number` more requests."""
        theirs = int(rng.binomial(number, self.weight))
        kept = int(rng.binomial(theirs, 1 - kind.lost)) if kind.lost else theirs
        for side, (count, rate, slower) in enumerate(((number - theirs, 0.01, 1.0), (kept, kind.errors, kind.slower))):
            failed = int(rng.binomial(count, rate))
            self.requests[side] += count
            self.errors[side] += failed
            self.latency[side] += rng.multinomial(count - failed, latency_shares(slower))
            self.cells[side] += rng.multinomial(count - failed, np.full(10, 0.1))

    def step(self) -> Step:
        """The same as the policy gets it."""
        latency = (histogram(self.latency[0]), histogram(self.latency[1]))
        cells = (tuple(self.cells[0].tolist()), tuple(self.cells[1].tolist()))
        requests, errors = Pair(*self.requests), Pair(*self.errors)
        return Step(self.weight, requests, requests, errors, requests, errors, latency, cells)


@dataclass
class Users:
    """Keys that come back: where each lies in the salted draw, and what it has done. A key counts once, as in `raymlp.serve.evidence`."""

    place: Floats
    seen: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    seen_here: NDArray[np.bool_]
    held: int = 0
    """The champion's first keys, which set what is slow and where the cells are."""

    @classmethod
    def of(cls, number: int, rng: np.random.Generator) -> Users:
        """None of whom has come yet."""
        return cls(rng.random(number), *(np.zeros(number, dtype=bool) for _ in range(3)))

    def first(self, who: NDArray[np.int64], among: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Places of the first request of each user who was not known before; known from now on."""
        places = np.flatnonzero(among)
        users, at = np.unique(who[places], return_index=True)
        new = np.sort(places[at[~known[users]]])
        known[users] = True
        return new


@dataclass
class Returning(Drawn):
    """A step whose requests come from users."""

    trials: list[int] = field(default_factory=lambda: [0, 0])
    failed: list[int] = field(default_factory=lambda: [0, 0])
    keys: list[int] = field(default_factory=lambda: [0, 0])

    def draw_from(self, users: Users, reference: NDArray[np.int64], rng: np.random.Generator, kind: Kind, number: int) -> None:
        """`number` more requests; the champion's first ones go to `reference`, counts by bin."""
        who = rng.integers(len(users.place), size=number)
        theirs = users.place[who] >= 1 - self.weight
        failed = rng.random(number) < np.where(theirs, kind.errors, 0.01)
        everyone = np.ones(number, dtype=bool)
        new, trials = users.first(who, everyone, users.seen), users.first(who, everyone, users.seen_here)
        voters = new[~failed[new]]
        first = np.cumsum(~theirs[voters]) + users.held <= REFERENCE_REQUESTS
        if users.held >= REFERENCE_REQUESTS:
            first[:] = False
        users.held += int((~theirs[voters] & first).sum())
        reference += rng.multinomial(int((first & ~theirs[voters]).sum()), latency_shares(1.0))
        for side, of in enumerate((~theirs, theirs)):
            votes = int((of[voters] & ~first).sum())
            self.requests[side] += int(of.sum())
            self.keys[side] += int(of[new].sum())
            self.errors[side] += int(of[users.first(who, failed & of, users.failed)].sum())
            self.trials[side] += int(of[trials].sum())
            self.failed[side] += int((of & failed)[trials].sum())
            self.latency[side] += rng.multinomial(votes, latency_shares(kind.slower if side else 1.0))
            self.cells[side] += rng.multinomial(votes, np.full(10, 0.1))

    def step(self) -> Step:
        pairs = {name: Pair(*getattr(self, name)) for name in ("requests", "keys", "errors", "trials", "failed")}
        return replace(super().step(), **pairs)


@dataclass
class Sums:
    """Rows, their sum and sum of squares, of differences that are drawn from a pool."""

    pool: Floats
    rows: int = 0
    total: float = 0.0
    squares: float = 0.0

    def draw(self, rng: np.random.Generator, number: int) -> None:
        values = self.pool[rng.integers(len(self.pool), size=number)]
        self.rows += number
        self.total += float(values.sum())
        self.squares += float(values @ values)

    def paired(self, champion_loss: float) -> Paired:
        if self.rows < 2:
            return Paired()
        mean = self.total / self.rows
        return Paired(self.rows, mean, max(0.0, (self.squares - self.rows * mean**2) / (self.rows - 1)), champion_loss)


def simulate(kind: Kind, settings: Rollout, seed: tuple[int, ...]) -> Ended:
    """One rollout, from its first request to its end."""
    settings = on_the_bound(settings) if kind.on_the_bound else settings
    rng = np.random.default_rng(seed)
    loss_pool, ranking_pool, champion_loss = pools(kind.auc, kind.identical)
    users = Users.of(kind.users, rng) if kind.users else None
    first = np.zeros(len(BINS), dtype=np.int64) if users else rng.multinomial(REFERENCE_REQUESTS, latency_shares(1.0))
    scores = Scores(tuple(rng.multinomial(200, np.full(10, 0.1)).tolist()))
    loss, ranking = Sums(loss_pool), Sums(ranking_pool)
    weight, total, owed = settings.weights[0], 0, 0
    now, past = (Returning if users else Drawn)(weight), list[Step]()
    t_test = t_test_errors = False
    while True:
        more = max(FIRST_LOOK, int(total * MORE_PER_LOOK))
        total += more
        if users:
            now.draw_from(users, first, rng, kind, more)
        else:
            now.draw(rng, kind, more)
        labels = int(rng.binomial(more, LABELLED))
        loss.draw(rng, labels)
        owed += labels
        ranking.draw(rng, owed // RANKING_BLOCK)
        owed %= RANKING_BLOCK
        steps = (*past, now.step())
        evidence = Evidence(steps, histogram(first), scores, loss.paired(champion_loss), ranking.paired(0.25))
        decision = decide(evidence, Position(weight, 0.0, 0.0), settings)
        if weight < 1 and not (t_test and t_test_errors):
            failing, slow, worse = t_statistics(steps, evidence.loss)
            t_test_errors |= failing > T_TEST
            t_test |= max(failing, slow, worse) > T_TEST
        if decision.action in ("promote", "rollback", "pause"):
            return Ended(decision.action, evidence.requests, evidence.challenger_requests, decision.reason, t_test, t_test_errors)
        if decision.action == "advance":
            past.append(steps[-1])
            to = next_weight(weight, settings.weights)
            assert to is not None
            weight = to
            now = type(now)(weight)
            if users:
                users.seen_here[:] = False


def on_the_bound(settings: Rollout) -> Rollout:
    """Without tolerance, and with a margin that nothing can be shown to be within."""
    parts: dict[str, Any] = {
        "max_requests": 50_000,
        "latency": settings.latency.model_copy(update={"tolerated": 0.0, "slack_ms": 0.0}),
        "quality": settings.quality.model_copy(update={"margin": 1e-9}),
    }
    return settings.model_copy(update=parts)


def histogram(counts: NDArray[Any]) -> Histogram:
    """The bins that have any."""
    some = np.flatnonzero(counts)
    return Histogram(tuple(BINS[some].tolist()), tuple(counts[some].tolist()))


def t_statistics(steps: tuple[Step, ...], loss: Paired) -> tuple[float, float, float]:
    """How many standard errors the challenger is worse, by error rate, mean latency and mean loss; 0 below 30 requests of it."""
    old, new = (np.array([sum(getattr(step, name)[side] for step in steps) for name in ("requests", "errors")]) for side in (0, 1))
    if new[0] < 30 or old[0] < 30:
        return 0.0, 0.0, 0.0
    rates = new[1] / new[0], old[1] / old[0]
    error = np.sqrt(rates[0] * (1 - rates[0]) / new[0] + rates[1] * (1 - rates[1]) / old[0])
    failing = (rates[0] - rates[1]) / error if error > 0 else 0.0
    means = []
    for side in (0, 1):
        bins = np.concatenate([step.latency[side].bins for step in steps])
        counts = np.concatenate([step.latency[side].counts for step in steps])
        times = 2.0 ** ((bins + 0.5) / BINS_PER_OCTAVE)
        mean = float(counts @ times) / counts.sum()
        means.append((mean, float(counts @ (times - mean) ** 2) / counts.sum() ** 2))
    slow = (means[1][0] - means[0][0]) / np.sqrt(means[0][1] + means[1][1])
    worse = loss.mean / np.sqrt(loss.variance / loss.rows) if loss.rows > 30 and loss.variance > 0 else 0.0
    return float(failing), float(slow), float(worse)


def run(name: str, rollouts: int, settings: Rollout, seed: int, mapped: Callable[..., Any] = map) -> list[Ended]:
    """Many rollouts of a kind; `mapped` as `map`."""
    place = list(KINDS).index(name)
    pools(KINDS[name].auc, KINDS[name].identical)
    return list(mapped(partial(simulate, KINDS[name], settings), [(seed, place, number) for number in range(rollouts)]))


def interval(hits: int, trials: int) -> tuple[float, float]:
    """The exact 95 % interval of a rate (Clopper and Pearson 1934)."""
    return (
        float(betaincinv(hits, trials - hits + 1, 0.025)) if hits else 0.0,
        float(betaincinv(hits + 1, trials - hits, 0.975)) if hits < trials else 1.0,
    )


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2_000, help="of each kind")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="beginnings of: " + ", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    asked = parser.parse_args()
    settings = Rollout(min_step_s=0)
    console = Console(width=180)
    titles = ("promoted", "rolled back", "no verdict", "paused", "its requests, median", "90 %", "requests, median", "t-tests alarm")
    table = Table("challenger", *titles)
    with ProcessPoolExecutor(asked.workers) as pool:
        for name in (name for name in KINDS if any(name.startswith(kind) for kind in asked.kinds)):
            ended = run(name, asked.rollouts, settings, asked.seed, partial(watched, pool, console, name))
            table.add_row(name, *summary(ended))
            console.print(f"  such as: {ended[0].reason}")
    console.print(table)
    expected = outlook(settings, Traffic(error_rate=0.01, latency_ms=LATENCY_MS, latency_spread=SPREAD, labelled_share=LABELLED, **known()))
    console.print("told before the start:", *expected.lines(), sep="\n  ")


def watched(pool: Executor, console: Any, name: str, function: Callable[..., Ended], seeds: list[tuple[int, ...]]) -> Iterator[Ended]:
    """`map` by processes, which says how far it is."""
    begun = time.monotonic()
    for done, one in enumerate(pool.map(function, seeds, chunksize=20), start=1):
        if done % max(1, len(seeds) // 20) == 0:
            console.print(f"{name}: {done:,} of {len(seeds):,} rollouts, {time.monotonic() - begun:,.0f} s", style="dim")
        yield one


def known() -> dict[str, float]:
    """What both versions' losses on the same rows would have told."""
    loss, _, champion_loss = pools(CHAMPION_AUC, False)
    return {"loss": champion_loss, "loss_deviation": float(loss.std())}


def summary(ended: list[Ended]) -> list[str]:
    """The columns of the table, rates with their 95 % intervals."""
    unsure = [one for one in ended if one.action == "rollback" and one.reason.startswith("no verdict")]
    shares = {action: sum(one.action == action for one in ended) for action in ("promote", "rollback", "pause")}
    theirs = np.array([one.challenger_requests for one in ended])

    def rate(hits: int) -> str:
        low, high = interval(hits, len(ended))
        return f"{hits / len(ended):.2%} [{low:.2%}, {high:.2%}]"

    return [
        rate(shares["promote"]),
        rate(shares["rollback"] - len(unsure)),
        rate(len(unsure)),
        rate(shares["pause"]),
        f"{np.median(theirs):,.0f}",
        f"{np.quantile(theirs, 0.9):,.0f}",
        f"{np.median([one.requests for one in ended]):,.0f}",
        f"{np.mean([one.t_test for one in ended]):.1%} (errors alone {np.mean([one.t_test_errors for one in ended]):.1%})",
    ]


if __name__ == "__main__":
    main()
