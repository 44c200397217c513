"""Work over the parts of a source as Ray Data tasks, one a part, and errors that arrive as they were raised."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from raymlp.core import errors
from raymlp.core.errors import DataError, RaymlpError

log = logging.getLogger(__name__)


def each_part(work: Callable[[int], dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Run `work` for 0 .. count - 1 as Ray Data tasks; results in that order. The error of the first that failed is raised here."""
    if not count:
        return []
    import ray
    from ray.exceptions import RayError

    tasks = ray.data.range(count, override_num_blocks=count)
    try:
        found = tasks.map(lambda row: _told(work, int(row["id"]))).take_all()
    except RayError as error:
        raise DataError(f"preparing failed: {str(error).strip().splitlines()[0]}. Ray's logs have more.") from error
    results = sorted(found, key=lambda row: int(row["index"]))
    failed = next((row for row in results if "error" in row), None)
    if failed:
        raise getattr(errors, failed["error"])(failed["message"])
    return results


def _told(work: Callable[[int], dict[str, Any]], index: int) -> dict[str, Any]:
    """What the work gives, or what went wrong in plain words: Ray Data wraps an error so that its cause does not arrive."""
    try:
        return {"index": index, **work(index)}
    except RaymlpError as error:
        return {"index": index, "error": type(error).__name__, "message": str(error)}
    except Exception as error:
        log.exception("part %d", index)
        return {"index": index, "error": "DataError", "message": f"preparing failed: {type(error).__name__}: {error}"}
