"""Give a running endpoint a shadow, or take it away: like versions and weights, a part of `user_config`."""

from __future__ import annotations

import uuid
from typing import Any

from raymlp.core.errors import ServingError
from raymlp.core.records import Version
from raymlp.serve.controller import apply, serve_client, wait_for_revision
from raymlp.serve.deploy import application_named, try_out


def shadow_of(version: Version, share: float, *, max_waiting: int) -> dict[str, Any]:
    """The part of `user_config` that is a shadow."""
    return {"label": version.label, "path": version.bundle, "share": float(share), "max_waiting": max_waiting}


def set_shadow(name: str, shadow: dict[str, Any] | None) -> None:
    """Give every replica this shadow (see `shadow_of`), None for none, without a restart; versions and weights stay.

    A version that the endpoint does not hold yet is first probed in a process of its own. Raises ServingError, with nothing changed,
    when it fails, does not fit into the memory or is the champion, when versions stand apart or the endpoint is not there; and when a
    replica cannot load it after all.
    """
    client = serve_client()
    known = application_named(client, name)
    wanted = known.deployments[0].user_config
    if shadow is not None:
        if shadow["label"] == wanted["champion"]:
            raise ServingError(f"{shadow['label']} is the champion of {name}; expected another version as its shadow.")
        if not 0 < shadow["share"] <= 1:
            raise ServingError(f"the shadow's share is {shadow['share']}; expected one above 0 and up to 1. Use shadow off for none.")
        if wanted.get("apart"):
            raise ServingError(f"the versions of {name} stand apart; expected serve.placement=together for a shadow. Deploy it so.")
        if wanted["versions"].get(shadow["label"]) != shadow["path"]:
            try_out(name, Version(shadow["label"], shadow["path"]), known.args["loading"])
    changed = application_named(client, name).model_copy(deep=True)  # once more: weights may have changed while it was tried
    changed.deployments[0].user_config = {**changed.deployments[0].user_config, "shadow": shadow, "revision": uuid.uuid4().hex}
    apply(client, changed)
    reports = wait_for_revision(client, changed)
    if shadow is not None:
        problems = sorted({problem for report in reports if (problem := report["problems"].get(shadow["label"]))})
        if problems:
            raise ServingError(f"{name} could not take {shadow['label']} as its shadow, and goes on without: {'; '.join(problems)}")
