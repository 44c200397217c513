"""Which version holds which alias after an event: facts in, decision and changes out. Carried out by the store.

`champion` serves, `challenger` is being tried, `previous` is the champion before, kept so that it can come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from raymlp.core.records import Decision

Event = Literal["register", "promote", "rollback"]
Changes = Mapping[str, str | None]
"""Alias to its new version; None removes the alias. Aliases that are not named stay as they are."""


def decide(event: Event, version: str, aliases: Mapping[str, str], *, passed: bool = True) -> tuple[Decision, Changes]:
    """The aliases to change when `version` was registered (and passed the gate, or not), promoted or rolled back.

    `aliases` maps alias to version as they are now. Actions: `champion`, `challenger`, `promote`, `rollback`, or `keep`
    with no changes.
    """
    if event == "register":
        return _register(version, aliases, passed)
    if event == "promote":
        return _promote(version, aliases)
    return _roll_back(version, aliases)


def _register(version: str, aliases: Mapping[str, str], passed: bool) -> tuple[Decision, Changes]:
    champion = aliases.get("champion")
    if not passed:
        return _keep(f"version {version} did not pass the gate; the champion stays {_name(champion)}")
    if champion is None:
        return Decision("champion", f"version {version} passed the gate and there is no champion yet"), {"champion": version}
    if champion == version:
        return _keep(f"version {version} is the champion already")
    return Decision("challenger", f"version {version} passed the gate; the champion stays {_name(champion)}"), {"challenger": version}


def _promote(version: str, aliases: Mapping[str, str]) -> tuple[Decision, Changes]:
    champion, challenger = aliases.get("champion"), aliases.get("challenger")
    if champion == version == challenger:
        return Decision("promote", f"version {version} is the champion already, and no challenger any more"), {"challenger": None}
    if champion == version:
        return _keep(f"version {version} is the champion already")
    if challenger != version:
        return _keep(f"version {version} is not the challenger ({_name(challenger)}); only the challenger is promoted")
    changes: dict[str, str | None] = {"champion": version, "challenger": None}
    if champion is not None:
        changes["previous"] = champion
    return Decision("promote", f"version {version} takes over from {_name(champion)}"), changes


def _roll_back(version: str, aliases: Mapping[str, str]) -> tuple[Decision, Changes]:
    champion, previous = aliases.get("champion"), aliases.get("previous")
    if aliases.get("challenger") == version:
        return Decision("rollback", f"version {version} is no longer tried; the champion stays {_name(champion)}"), {"challenger": None}
    if champion == version and previous is not None:
        return Decision("rollback", f"version {previous} comes back for version {version}"), {"champion": previous, "previous": None}
    if champion == version:
        return _keep(f"version {version} is the champion and no earlier one is remembered")
    return _keep(f"version {version} is neither champion nor challenger")


def _keep(reason: str) -> tuple[Decision, Changes]:
    return Decision("keep", reason), {}


def _name(version: str | None) -> str:
    return f"version {version}" if version is not None else "none"
