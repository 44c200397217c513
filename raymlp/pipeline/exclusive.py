"""One thing at a time moves an endpoint's traffic: a rollout or an experiment, never both."""

from __future__ import annotations

from raymlp.config.schema import Config
from raymlp.core.errors import ServingError
from raymlp.core.files import Place
from raymlp.runtime.session import storage_root
from raymlp.serve.experiment.record import Record
from raymlp.serve.rollout.course import Course, Records


def experiment_folder(config: Config) -> Place:
    """Where the records of the problem's experiments are, `SALT.json` each."""
    return storage_root(config.runtime) / "experiments" / config.problem.name


def rollout_folder(config: Config) -> Place:
    """Where the records of the problem's rollouts lie, and the orders for them."""
    return storage_root(config.runtime) / "rollouts" / config.problem.name


def open_experiment(config: Config) -> Record | None:
    """The experiment that runs on the problem's endpoint."""
    return next((record for record in records(config) if record.is_open), None)


def records(config: Config) -> list[Record]:
    """All experiments of the problem, the newest first."""
    found = [Record.from_json(file.read_text()) for file in experiment_folder(config).glob("[!.]*.json")]
    return sorted(found, key=lambda record: -record.started)


def open_rollout(config: Config) -> Course | None:
    """The rollout that is open on the problem's endpoint."""
    course = Records(rollout_folder(config)).latest()
    return course if course is not None and course.is_open else None


def refuse_beside_experiment(config: Config) -> None:
    """Raises ServingError while an experiment runs."""
    if (record := open_experiment(config)) is not None:
        raise ServingError(
            f"an experiment of {', '.join(record.arms)} runs on {config.problem.name}; expected none beside a rollout or another "
            f"experiment. End it with raymlp experiment stop."
        )


def refuse_beside_rollout(config: Config) -> None:
    """Raises ServingError while a rollout is open."""
    if (course := open_rollout(config)) is not None:
        raise ServingError(
            f"the rollout of {course.challenger} on {config.problem.name} is {course.state}; expected none beside an experiment. "
            "Promote or abort it first."
        )
