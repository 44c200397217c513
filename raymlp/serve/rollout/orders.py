"""What people and other processes ask of a rollout: a file for each order, answered by a file, in the folder of the records.

So an order needs no connection to the process that drives, only the storage that both see; and it comes from the owner of the file,
whatever it says of itself. In an object store, whose files have no owner, it comes from whom it says, who may write there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from raymlp.core.errors import ServingError
from raymlp.core.files import Place, make_folder, write_text
from raymlp.serve.rollout.course import Course

Verb = Literal["start", "pause", "resume", "promote", "abort", "set"]
FOLDER = "orders"
KEPT_S = 3_600.0
"""Answers that nobody fetched are kept so long."""


def _new_id() -> str:
    return f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class Order:
    """What is asked, by whom and why. `share` belongs to `set`, `accept` (guards to overrule) to `resume`; `challenger` (a version's
    number, or empty for the alias) and `settings` (the plan) to `start`."""

    verb: Verb
    by: str
    reason: str = ""
    share: float | None = None
    accept: tuple[str, ...] = ()
    challenger: str = ""
    settings: Mapping[str, Any] | None = None
    id: str = field(default_factory=_new_id)


class Answer(NamedTuple):
    """Whether it was done, and what came of it or why not."""

    done: bool
    told: str


def obeyed(course: Course, order: Order, *, now: float) -> Course:
    """What an order makes of the record. Raises ServingError at a wrong moment."""
    by = {"now": now, "by": order.by, "reason": order.reason}
    match order.verb:
        case "pause":
            after = course.pause(**by)  # type: ignore[arg-type]
        case "resume":
            after = course.resume(**by, accept=order.accept)  # type: ignore[arg-type]
        case "promote":
            after = course.promote(**by)  # type: ignore[arg-type]
        case "abort":
            after = course.abort(**by)  # type: ignore[arg-type]
        case "set":
            after = course.set(order.share if order.share is not None else float("nan"), **by)  # type: ignore[arg-type]
        case "start":
            raise ServingError(
                f"a rollout of {course.challenger} is {course.state} already (since its start by {course.history[0].by}); expected none. "
                "End it first: raymlp rollout promote, or abort."
            )
    return after.ordered(order.id)


def words_of(course: Course) -> str:
    """Where a record is after its last event, in a line."""
    event = course.history[-1]
    what = {"set": "set to another share", "start": "started", "advance": "advanced"}.get(event.what, course.state)
    shares = ", ".join(f"{label} {share:.4g}" for label, share in course.weights.items())
    return f"the rollout of {course.challenger} is {what}; shares: {shares}"


# ---------------------------------------------------------------------- the files


def place(folder: Place, order: Order) -> None:
    """Ask. The file is whole or absent."""
    make_folder(folder / FOLDER)
    write_text(folder / FOLDER / f"{order.id}.json", json.dumps(asdict(order)))


def withdraw(folder: Place, order: Order) -> bool:
    """Whether the order is taken back: false where it was carried out meanwhile, or is about to be."""
    try:
        (folder / FOLDER / f"{order.id}.json").unlink()
    except FileNotFoundError:
        return False
    return True


def waiting(folder: Place, owner: Callable[[int], str]) -> list[Order]:
    """Orders, oldest first; `owner` names the user with a number. What is no order is answered and taken away."""
    found = []
    for file in sorted((folder / FOLDER).glob("[0-9]*.json")):
        try:
            content = json.loads(file.read_text())
            by = str(content.pop("by"))
            if isinstance(file, Path):  # a file has an owner, whatever it says of itself
                by = f"{owner(file.stat().st_uid)}@{by.rpartition('@')[2]}"
            order = Order(**{**content, "accept": tuple(content["accept"]), "by": by})
            if order.verb not in get_args(Verb) or order.id != file.name.removesuffix(".json"):
                raise ValueError(f"{order.verb!r} as {order.id}")
            found.append(order)
        except FileNotFoundError:
            continue  # withdrawn
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            answer(
                folder,
                file.name.removesuffix(".json"),
                Answer(False, f"{file} is no order ({error}); expected one that raymlp wrote. Ask again."),
            )
    return found


def answer(folder: Place, order: str, given: Answer) -> None:
    """Answer an order and take it away; after a crash in between it is answered again."""
    write_text(folder / FOLDER / f"{order}.answer", json.dumps(given._asdict()))
    (folder / FOLDER / f"{order}.json").unlink(missing_ok=True)
    for old in (folder / FOLDER).glob("*.answer"):
        if time.time() - old.stat().st_mtime > KEPT_S:
            old.unlink(missing_ok=True)


def answer_to(folder: Place, order: Order) -> Answer | None:
    """The answer, which is then gone; None while there is none."""
    file = folder / FOLDER / f"{order.id}.answer"
    try:
        found = Answer(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    file.unlink(missing_ok=True)
    return found


def asked(folder: Place, order: Order, *, limit_s: float, is_live: Callable[[], bool] = lambda: True, poll_s: float = 0.05) -> str:
    """Ask and wait: what came of it. Raises ServingError when it was refused, or taken back because nobody answered in time or lives to."""
    place(folder, order)
    deadline = time.monotonic() + limit_s
    while (found := answer_to(folder, order)) is None:
        if (time.monotonic() > deadline or not is_live()) and withdraw(folder, order):
            raise ServingError(
                f"nobody answered '{order.verb}', so it was taken back; expected the process that drives the rollouts "
                f"of {folder.name} to. Look: raymlp rollout status."
            )
        time.sleep(poll_s if isinstance(folder, Path) else 10 * poll_s)  # a store answers each look for money
    if not found.done:
        raise ServingError(found.told)
    return found.told
