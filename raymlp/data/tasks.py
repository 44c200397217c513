"""Work over the parts of a source as Ray tasks, one a part, and errors that arrive as they were raised."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from raymlp.core import errors
from raymlp.core.errors import DataError, RaymlpError

log = logging.getLogger(__name__)


def each_part(work: Callable[[int], dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Run `work` for 0 .. count - 1 as Ray tasks; results in that order. The error of the first that failed is raised here."""
    return begun(work, count)()


def begun(work: Callable[[int], dict[str, Any]], count: int = 1) -> Callable[[], list[dict[str, Any]]]:
    """The same, begun now and waited for by calling what comes back."""
    import ray

    task, shared = ray.remote(scheduling_strategy="SPREAD")(_told), ray.put(work)
    running = [task.remote(shared, index) for index in range(count)]
    return lambda: _results(running)


def _results(ids: list[Any]) -> list[dict[str, Any]]:
    import ray
    from ray.exceptions import RayError

    try:
        results: list[dict[str, Any]] = ray.get(ids)
    except RayError as error:
        raise DataError(f"preparing failed: {str(error).strip().splitlines()[0]}. Ray's logs have more.") from error
    failed = next((found for found in results if "error" in found), None)
    if failed:
        raise getattr(errors, failed["error"])(failed["message"])
    return results


def _told(work: Callable[[int], dict[str, Any]], index: int) -> dict[str, Any]:
    """What the work gives, or what went wrong in plain words, since an error of a task arrives wrapped in its stack."""
    try:
        return work(index)
    except RaymlpError as error:
        known = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
        return {"error": known, "message": str(error)}
    except Exception as error:
        log.exception("part %d", index)
        return {"error": "DataError", "message": f"preparing failed: {type(error).__name__}: {error}"}
