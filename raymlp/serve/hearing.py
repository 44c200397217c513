"""The feedback route of one replica: from a request's bytes to answers that wait for the disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import TypeAdapter
from starlette.types import Receive

from raymlp.config.privacy import Rule
from raymlp.core.errors import RequestError
from raymlp.core.files import Place
from raymlp.serve.admission import Admission, refusal
from raymlp.serve.body import Unread, read_body
from raymlp.serve.feedback import Answers, FeedbackLog, parse_feedback

if TYPE_CHECKING:
    from raymlp.model.bundle import Bundle


class Hearing:
    """What clients tell of what came true."""

    def __init__(self, admission: Admission, folder: Place, *, rule: Mapping[str, Any] | None, max_rows: int, writer: str) -> None:
        """`rule` is the privacy rule of the target's column."""
        self.admission, self.max_rows = admission, max_rows
        self.log = FeedbackLog(folder, writer=writer)
        self._rule: Rule | None = TypeAdapter(Rule).validate_python(rule) if rule is not None else None
        self._answers: Answers | None = None

    def know(self, bundle: Bundle) -> None:
        """Labels are those of the champion's target. Raises ConfigError when its privacy rule needs a key that is missing."""
        self._answers = Answers.of(bundle.plan.target, bundle.profile, self._rule)

    async def answer(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> tuple[int, bytes]:
        """Status and body: 202 with the number of rows that were taken."""
        given = dict(headers)
        refused = self.admission.refused(given, "feedback")
        if refused is not None:
            return refused.status, refusal(refused.field, refused.found, refused.expected)
        answers = self._answers
        if answers is None:
            return 503, refusal("model", "not loaded", "a model that is ready; try again")
        try:
            content = await read_body(given, receive, self.admission.access.limits)
            rows = parse_feedback(content, answers, max_rows=self.max_rows)
            if not self.log.add(rows, answers.type):
                return 503, refusal("feedback", "too much waits for the disk", "a later try")
        except Unread as error:
            return error.status, refusal("body", error.found, error.expected)
        except RequestError as error:
            return 422, refusal(error.field, error.found, error.expected)
        except RecursionError:
            return 422, refusal("body", "nested too deep", "rows of plain values")
        return 202, orjson.dumps({"accepted": len(rows)})
