"""What a change of the registry's aliases asks of an endpoint: facts in, one decision out.

Aliases are held against what the endpoint does, not against what they were before. So an alias that the endpoint wrote itself asks for
nothing, and nothing is asked twice or forgotten, however often somebody looks or dies in between.
"""

from __future__ import annotations

from collections.abc import Mapping

from raymlp.core.records import Decision


def follow(aliases: Mapping[str, str], *, champion: str, challenger: str | None) -> Decision:
    """`start` (the version in facts), `abort`, `promote` (the challenger), `serve` (the version in facts) or `keep`.

    `champion` is the version that the endpoint serves, `challenger` the one whose rollout is open. One thing at a time: what is left is
    the next look's.
    """
    wanted, tried = aliases.get("champion"), aliases.get("challenger")
    if wanted is not None and wanted != champion:
        if wanted == challenger:
            return Decision("promote", f"the alias champion was moved to version {wanted}")
        if challenger is not None:
            return Decision("abort", f"the alias champion was moved to version {wanted}")
        return Decision("serve", f"the alias champion was moved from version {champion} to {wanted}", {"version": wanted})
    if challenger is not None and tried != challenger:
        moved = "was removed" if tried is None else f"was moved to version {tried}"
        return Decision("abort", f"the alias challenger {moved}")
    if challenger is None and tried is not None and tried != champion:
        return Decision("start", f"the alias challenger was moved to version {tried}", {"version": tried})
    return Decision("keep", "the endpoint does what the aliases say")
