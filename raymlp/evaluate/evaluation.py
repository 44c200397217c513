"""Judging one bundle on rows it did not learn from, and two bundles against each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymlp.config.evaluate import Evaluate
from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.core.clustering import own
from raymlp.core.files import Place
from raymlp.core.language import TOKENS, on_common_tokens
from raymlp.core.metrics import METRICS, flags, paired_gain, resample_all
from raymlp.core.records import Decision, Evaluation, Interval, Snapshot, Task
from raymlp.data.snapshot import read_split
from raymlp.evaluate import gate
from raymlp.evaluate.baselines import sample_rows, scores_of
from raymlp.evaluate.report import Scored, write_report
from raymlp.evaluate.slices import slices_of
from raymlp.features.plan import FeaturePlan
from raymlp.model.judging import judged
from raymlp.model.predictor import Predictor

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]


def evaluate(config: Config, snapshot: Snapshot, bundle: Place, *, report_dir: Place) -> Evaluation:
    """Metrics with intervals for the model and the baselines, slices, the gate's verdict, and a report in `report_dir`.

    Judged on the test split, or on the validation split where there is none. Holds the split and the baselines' training
    rows in memory. Raises BundleError for a bundle that is not whole, DataError when no row has an answer.
    """
    problem, settings = config.problem, config.evaluate
    predictor = Predictor.load(bundle)
    plan = predictor.bundle.plan
    split = "test" if snapshot.rows.get("test", 0) else "valid"
    table, y, rows = judged(_read(snapshot, split, plan, problem), plan)
    p = predictor.scores(table)
    train, sampled = _training_rows(config, snapshot, plan)
    baselines = scores_of(
        settings.baselines, plan, train, table, clusters=p.shape[1] if problem.task == "clustering" else 0, seed=settings.seed
    )
    draws = {"samples": settings.bootstrap_samples, "seed": settings.seed}
    metrics = resample_all(problem.task, y, p, **draws)
    beside = {name: resample_all(problem.task, y, scores, **draws) for name, scores in baselines.items()}
    facts = gate_facts(problem, y, p, baselines, metrics, beside, rows=rows, **draws)
    decision = gate.decide(facts, settings.gate, success_threshold=problem.success_threshold)
    log.info("gate: %s", decision)
    parts = slices_of(
        table, y, p, task=problem.task, metric=problem.main_metric, plain=problem.slices, sensitive=problem.sensitive,
        min_rows=settings.min_slice_rows, **draws,
    )  # fmt: skip
    result = Evaluation(split, rows, metrics, beside, parts, decision, report_dir)
    return write_report(
        result, problem, Scored(y, p, baselines, plan.target.classes, predictor.bundle.calibration.threshold),
        facts=_page_facts(split, rows, snapshot, predictor, train.num_rows, sampled, settings) | found_in(problem.task, predictor, y, p),
        reasons=plan.reasons, folder=report_dir,
    )  # fmt: skip


def compare_models(config: Config, champion: str | Place, challenger: str | Place, table: pa.Table) -> tuple[Decision, Interval]:
    """Whether the challenger may replace the champion, and its paired gain in the main metric, positive is better.

    Both score the same rows of `table`, which holds the inputs of both and the target. Classes are the challenger's; the
    champion gives 0 to one that it does not know. Language models with different tokenizers are compared by what they say of whole texts.
    Raises DataError when no row has an answer.
    """
    problem, settings = config.problem, config.evaluate
    old, new = Predictor.load(champion), Predictor.load(challenger)
    table, y, rows = judged(table, new.bundle.plan)
    scores = [_aligned(predictor.scores(table), predictor, new) for predictor in (new, old)]
    if problem.task == "language":
        scores = _on_common_tokens(scores, new.bundle.plan, old.bundle.plan)
    name = problem.main_metric
    found = paired_gain(name, problem.task, y, *scores, samples=settings.bootstrap_samples, seed=settings.seed)
    reference = METRICS[problem.task][name](y, scores[1])
    decision = gate.compare(found, settings.gate, metric=name, champion=reference, rows=rows)
    log.info("champion and challenger: %s", decision)
    return decision, found


def gate_facts(
    problem: Problem, y: Floats, p: Floats, baselines: Mapping[str, Floats], metrics: Mapping[str, Interval],
    beside: Mapping[str, Mapping[str, Interval]], *, samples: int, seed: int, rows: int | None = None,
) -> gate.GateFacts:  # fmt: skip
    """What the gate looks at, from scores `p` of the model and of the baselines on rows with answers `y`; `rows` of them are real."""
    name = problem.main_metric
    rule = baselines.get("rule")
    return gate.GateFacts(
        metric=name,
        rows=len(y) if rows is None else rows,
        value=metrics[name],
        rule=None if rule is None else beside["rule"][name].value,
        rule_gain=None if rule is None else paired_gain(name, problem.task, y, p, rule, samples=samples, seed=seed),
        baselines={other: values[name].value for other, values in beside.items() if other != "rule"},
    )


def _read(snapshot: Snapshot, split: str, plan: FeaturePlan, problem: Problem) -> pa.Table:
    columns = dict.fromkeys([*plan.inputs, *plan.target.columns, *problem.slices, *problem.sensitive])
    return read_split(snapshot.path, split, list(columns))


def found_in(task: Task, predictor: Predictor, y: Floats, p: Floats) -> dict[str, str]:
    """What the scores of the judged rows say by themselves, for the page: sizes of clusters, share of flagged rows."""
    if task == "clustering":
        sizes = np.sort(np.bincount(own(p), minlength=p.shape[1]))[::-1] / max(len(p), 1)
        return {"clusters": f"{np.count_nonzero(sizes)} of {len(sizes)} have rows: {', '.join(f'{size:.1%}' for size in sizes[:12])}"}
    if task == "anomaly":
        threshold = predictor.bundle.calibration.threshold
        facts = flags(y, p, threshold)
        quantiles = ", ".join(f"{name.removeprefix('score_')} {value:.4f}" for name, value in facts.items() if name != "flagged_share")
        return {"flagged": f"{facts['flagged_share']:.2%} of the rows, from a score of {threshold:.4f} on; {quantiles}"}
    return {}


def _aligned(scores: Floats, owner: Predictor, reference: Predictor) -> Floats:
    """Class probabilities in the order of the reference's classes, (N, K); other scores as they are."""
    own, wanted = owner.bundle.plan.target.classes, reference.bundle.plan.target.classes
    if scores.ndim == 1 or own == wanted:
        return scores
    aligned = np.zeros((len(scores), len(wanted)))
    for place, label in enumerate(wanted):
        if label in own:
            aligned[:, place] = scores[:, own.index(label)]
    return aligned


def _on_common_tokens(scores: Sequence[Floats], new: FeaturePlan, old: FeaturePlan) -> list[Floats]:
    steps = [plan.texts[0] for plan in (new, old)]
    if steps[0] == steps[1]:
        return list(scores)
    read = [values[:, TOKENS] < step.length for values, step in zip(scores, steps, strict=True)]
    return list(on_common_tokens(scores[0], scores[1], read[0] & read[1]))


def _training_rows(config: Config, snapshot: Snapshot, plan: FeaturePlan) -> tuple[pa.Table, bool]:
    """Rows that the baselines learn from, and whether they are a sample of the training split."""
    train = read_split(snapshot.path, "train", list(dict.fromkeys([*plan.inputs, *plan.target.columns])))
    chosen = sample_rows(train.num_rows, config.evaluate.max_baseline_rows, seed=config.evaluate.seed)
    return (train, False) if chosen is None else (train.take(pa.array(chosen)), True)


def _page_facts(
    split: str, rows: int, snapshot: Snapshot, predictor: Predictor, train_rows: int, sampled: bool, settings: Evaluate
) -> dict[str, str]:
    """What the report says of the data and the model."""
    honest = {
        "test": "The test split: neither the weights, nor the number of epochs, nor the calibration saw these rows.",
        "valid": "There is no test split, so this is the validation split. It also chose the number of epochs and the calibration, "
        "so the model's numbers are a little optimistic; the baselines did not see these rows.",
    }
    bundle = predictor.bundle
    sample = f", a random sample of {snapshot.rows.get('train', 0):,} (evaluate.max_baseline_rows)" if sampled else ""
    splits = ", ".join(f"{name} {count:,}" for name, count in snapshot.rows.items())
    return {
        "judged on": f"{rows:,} rows. {honest[split]}",
        "baselines learned from": f"{train_rows:,} training rows{sample}",
        "snapshot": f"{snapshot.digest} ({splits}; {snapshot.quarantined:,} quarantined)",
        "bundle": f"{bundle.name}, digest {bundle.digest[:16]}",
        "run": bundle.run_id,
        "intervals": f"95 %, {settings.bootstrap_samples} resamples, seed {settings.seed}",
    }
