"""What a version's net runs in: torch, or ONNX Runtime with a graph of the net.

A graph is made once a bundle, in the process that probes it: no replica waits for that. It is compared with torch on rows that the
contract allows, and lies in a folder of its own, beside what was found (`manifest.json`); a bundle is sealed. A replica compares again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raymlp.core.errors import ConfigError, RequestError, ServingError
from raymlp.core.files import Place, digest_of, sha256_file, to_json
from raymlp.data.contract import ColumnContract
from raymlp.runtime.copies import filled, local_copy
from raymlp.runtime.store import MANIFEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from raymlp.model.predictor import Predictor

Runtime = Literal["torch", "onnx", "auto"]
GRAPH, FACTS = "net.onnx", MANIFEST
ROWS = 32
"""Rows the contract allows, and rows of random tensors, on which a graph is compared."""
logger = logging.getLogger("ray.serve")


def prepare(predictor: Predictor, runtime: Runtime, graphs: Place, *, device: str = "cpu") -> int:
    """Make and compare the graph of a bundle's net in a folder of `graphs`, unless it was done before; gives back its size in bytes.
    Nothing to do, and 0, for torch, for a GPU, and for a model that is no net.

    Raises ConfigError when the packages are missing, and ServingError when the net has no graph that agrees; not for `auto`.
    """
    if not _may_have_graph(predictor, runtime, device):
        return 0
    place = graph_place(graphs, predictor.bundle.digest)
    if not (place / FACTS).exists():
        with filled(place) as aside:
            facts = _made(predictor, aside)
            (aside / FACTS).write_text(to_json(facts))
    refused = _facts(place).get("refused")
    if refused and runtime == "onnx":
        raise ServingError(
            f"the net of {predictor.bundle.path} cannot run in ONNX Runtime: {refused}. Expected a graph that answers as torch does. "
            "Set serve.runtime=auto or torch."
        )
    return 0 if refused else (place / GRAPH).stat().st_size


def with_runtime(predictor: Predictor, runtime: Runtime, graphs: Place, *, device: str = "cpu") -> tuple[Predictor, str]:
    """The predictor with its net in the runtime, and the name of that: `torch`, `onnx`, or `library` for a model that is no net.

    Raises ServingError when the graph is not there, was changed, or does not answer as torch does here. With `auto` that is
    logged, and torch serves.
    """
    from raymlp.model.scorer import NetScorer

    scorer = predictor.bundle.scorer
    if not isinstance(scorer, NetScorer):
        return predictor, "library"
    if not _may_have_graph(predictor, runtime, device):
        return predictor, "torch"
    from raymlp.model.onnx_net import NotExportable, OnnxScorer, difference

    place = graph_place(graphs, predictor.bundle.digest)
    try:
        facts = _facts(place)
        if "refused" in facts:
            raise NotExportable(facts["refused"])
        place = local_copy(place)
        if sha256_file(place / GRAPH) != facts["sha256"]:
            raise NotExportable(f"{place / GRAPH} was changed after it was written; remove {place} and deploy again")
        onnx = OnnxScorer(scorer, place / GRAPH)
        _refuse_difference(difference(onnx, trial_tensors(predictor)))
    except NotExportable as problem:
        if runtime == "onnx":
            raise ServingError(f"the net of {predictor.bundle.path} cannot run in ONNX Runtime: {problem}. Set serve.runtime.") from None
        logger.warning("the net of %s runs in torch, not in ONNX Runtime: %s", predictor.bundle.path, problem)
        return predictor, "torch"
    return type(predictor)(replace(predictor.bundle, scorer=onnx), key=predictor.key), "onnx"


def graph_place(graphs: Place, digest: str) -> Place:
    """The folder of a bundle's graph: another one for another bundle, and for other versions of what makes the graph and runs it."""
    from raymlp.model.onnx_net import PACKAGES, TOLERANCE

    made_by = {name: version(name) for name in ("torch", *PACKAGES)}
    return graphs / digest_of({"bundle": digest, "made_by": made_by, "tolerance": TOLERANCE, "facts": FACTS})[:32]


def trial_tensors(predictor: Predictor) -> dict[str, NDArray[Any]]:
    """The tensors of rows that the contract allows (nulls, ends of ranges, far values, unseen categories), and random ones."""
    from raymlp.model.scorer import TAKEN

    plan, rng = predictor.bundle.plan, np.random.default_rng(0)
    run = plan.row_executor()
    allowed = [run(row) for row in trial_rows(predictor)]
    sizes = {"categorical": plan.cardinalities, "text": tuple(step.size for step in plan.texts for _ in range(step.length))}
    found = {}
    for name, shape in plan.shapes.items():
        if name == "numeric":
            random: NDArray[Any] = rng.normal(0, 3, (ROWS, *shape))
        else:
            random = rng.integers(0, sizes.get(name, 256), (ROWS, *shape))
        made = np.array([row[name] for row in allowed]).reshape(len(allowed), *shape)
        found[name] = np.concatenate([made.astype(TAKEN[name]), random.astype(TAKEN[name])])
    return found


def trial_rows(predictor: Predictor) -> list[dict[str, Any]]:
    """Typed rows that the contract allows, as `Predictor.check` gives them; each value of `_values` that it allows is in one."""
    from raymlp.serve.probe import example_row

    contract = predictor.bundle.contract
    plain = example_row(contract)
    allowed: dict[str, list[Any]] = {}
    for name, rule in contract.columns.items():
        allowed[name] = []
        for value in _values(rule):
            try:
                predictor.check({**plain, name: value}, "trial")
            except RequestError:
                continue
            allowed[name].append(value)
        allowed[name] = allowed[name] or [plain[name]]
    rng = np.random.default_rng(0)
    order = {name: rng.permutation(len(values)) for name, values in allowed.items()}
    rows = [{name: values[order[name][i % len(values)]] for name, values in allowed.items()} for i in range(ROWS)]
    return [predictor.check(row, "trial") for row in (plain, *rows[1:])]


def _values(rule: ColumnContract) -> list[Any]:
    """Values that a column may hold, some far out; what its contract does not allow is left out by who asks."""
    ends = [end for end in (rule.minimum, rule.maximum) if end is not None]
    match rule.type:
        case "bool":
            found: list[Any] = [False, True]
        case "int":
            found = [*map(int, ends), 0, 1, -1, 1_000_000, -1_000_000]
        case "float":
            found = [*ends, 0.0, 0.5, -0.5, 1e6, -1e6]
        case "string":
            found = [*rule.categories[:8], "", "never seen", "late again and again"]
        case "timestamp":
            found = ["1970-01-01T00:00:00Z", "2013-07-04T12:34:56Z", "2099-12-31T23:59:59Z"]
        case "bytes":
            found = []
    return [rule.example, *found, None]


def _may_have_graph(predictor: Predictor, runtime: Runtime, device: str) -> bool:
    """Whether the setting asks for a graph of this model, on a CPU. Raises ConfigError when it does and the packages are missing."""
    from raymlp.model.scorer import NetScorer

    if runtime == "torch" or device != "cpu" or not isinstance(predictor.bundle.scorer, NetScorer):
        return False
    from raymlp.model.onnx_net import missing_package

    missing = missing_package()
    if missing and runtime == "onnx":
        raise ConfigError(f"serve.runtime=onnx needs the package {missing}, which is missing. Run: pip install 'raymlp[onnx]'.")
    return missing is None


def _made(predictor: Predictor, folder: Path) -> dict[str, Any]:
    """Write the graph; gives back what is to be known of it, or why there is none."""
    from raymlp.model.onnx_net import NotExportable, OnnxScorer, difference, export
    from raymlp.model.scorer import NetScorer

    scorer, bundle = predictor.bundle.scorer, {"bundle": predictor.bundle.digest}
    assert isinstance(scorer, NetScorer)
    tensors = trial_tensors(predictor)
    try:
        export(scorer, tensors, folder / GRAPH)
        found = difference(OnnxScorer(scorer, folder / GRAPH), tensors)
        _refuse_difference(found)
    except NotExportable as problem:
        (folder / GRAPH).unlink(missing_ok=True)
        return {**bundle, "refused": str(problem)}
    return {**bundle, "sha256": sha256_file(folder / GRAPH), "difference": found, "rows": len(next(iter(tensors.values())))}


def _refuse_difference(found: float) -> None:
    from raymlp.model.onnx_net import TOLERANCE, NotExportable

    if not found <= TOLERANCE:
        raise NotExportable(f"its outputs are off by up to {found:.2g} from torch's; expected at most {TOLERANCE:g}")


def _facts(place: Place) -> Mapping[str, Any]:
    """Raises ServingError when the graph was not made."""
    try:
        facts: dict[str, Any] = json.loads((place / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise ServingError(f"{place / FACTS} cannot be read ({error}); expected the graph that the probe made. Deploy again.") from None
    return facts
