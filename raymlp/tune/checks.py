"""What can be known of a study before it starts. No Ray here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from raymlp.config.schema import Config
from raymlp.config.tune import CONTINUED, Tpe
from raymlp.core.errors import ConfigError
from raymlp.tune import space
from raymlp.tune.draws import require_optuna
from raymlp.tune.trials import check_objectives

TOKENS = tuple(f"features.{name}" for name in ("lowercase", "text", "text_length", "tokenizer", "vocabulary_size"))
"""Settings that change into how many tokens a text is taken apart, and how much of it is read."""


def check(config: Config) -> None:
    """Build the config at every branch, choice and bound of the space, and see that searcher and objectives fit.

    Raises ConfigError that names the key. The space must not be empty: see `portfolio.resolved`.
    """
    settings = config.tune
    check_objectives(settings.objectives, config.problem.task)
    if isinstance(settings.searcher, Tpe):
        require_optuna()
    if settings.searcher.kind == "pbt" and not set(CONTINUED) & set(settings.space):
        raise ConfigError(
            f"tune.searcher.kind is pbt, and the space has {', '.join(settings.space)}; expected one of {', '.join(CONTINUED)}, which may "
            "change while a net is trained. Set tune.space or tune.searcher.kind."
        )
    kinds = {config.model.kind, *(getattr(settings.space.get("model.kind"), "values", ()))}
    if settings.searcher.kind == "pbt" and (others := sorted(kinds & {"xgboost", "lightgbm", "kmeans", "isolation_forest"})):
        raise ConfigError(
            f"tune.searcher.kind is pbt with model.kind={others[0]}, which has no weights that another trial goes on from; expected "
            "a net. Set tune.searcher.kind=random."
        )
    if settings.searcher.kind == "grid" and settings.num_samples is not None:
        size = sum(1 for _ in itertools.islice(space.grid(settings.space), settings.num_samples + 1))
        if size > settings.num_samples:
            raise ConfigError(
                f"tune.num_samples is {settings.num_samples}, and the grid has more points; expected room for all of them. "
                "Set tune.num_samples=null, or fewer values (`grid` of a domain)."
            )
    if config.problem.task == "language" and (keys := sorted(set(TOKENS) & set(settings.space))):
        raise ConfigError(
            f"tune.space has {keys[0]} with problem.task=language: losses of other tokens cannot be compared; expected the same tokens in "
            "every trial. Leave it out of tune.space."
        )
    space.check(config)


def resources(config: Config) -> dict[str, float]:
    """CPUs and GPUs of one trial."""
    if config.tune.workers == "one":
        return {"CPU": 1.0}
    train = config.train
    return {"CPU": train.num_workers * train.cpus_per_worker} | ({"GPU": float(train.num_workers)} if train.gpu else {})


def at_a_time(config: Config, offered: Mapping[str, float]) -> tuple[int, str]:
    """Trials that run at the same time on what a cluster offers, and the arithmetic in words.

    Raises ConfigError when not even one can ever run.
    """
    train, wanted = config.tune, config.tune.max_concurrent
    fitting = wanted
    words = []
    for kind, each in resources(config).items():
        room = offered.get(kind, 0.0)
        how = f"{config.train.num_workers} workers x {each / config.train.num_workers:g}" if train.workers == "as_train" else f"{each:g}"
        if each > room:
            raise ConfigError(
                f"a trial needs {how} {kind}s = {each:g}, and Ray offers {room:g}; expected no more. "
                "Set tune.workers=one, train.num_workers or runtime.num_cpus."
            )
        fitting = min(fitting, int(room // each))
        words.append(f"{wanted} trials x {how} {kind}s = {wanted * each:g} of {room:g}")
    return fitting, "; ".join(words) + (f", so {fitting} at a time" if fitting < wanted else "")
