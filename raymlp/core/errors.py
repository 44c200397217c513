"""Every error a user can meet, and the exit code it gives.

    RaymlpError (1)
    |-- ConfigError (2)       a setting is wrong
    |-- DataError (1)         a file, row or column is wrong
    |   |-- ContractError     too many rows break the contract
    |   `-- SourceUnavailable a source is not there or does not answer
    |-- BundleError (1)       a bundle is incomplete, tampered with, or of another format
    |-- TrainingError (1)     the training run failed
    |-- RegistryError (1)     a model, version or alias is missing
    |-- JobError (1)          a cluster's jobs cannot be reached, or a job is not there
    |-- ServingError (1)      the endpoint could not be started or reached
    |   |-- VersionAway       a version that stands apart does not answer (the endpoint answers 503)
    |   `-- VersionRefused    a version does not load, or does not answer a sample
    |-- RequestError          one request is wrong (the endpoint answers 422)
    `-- GateRefused (3)       the model was trained, but is not good enough

A message says what was found, what was expected, and what to change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaymlpError(Exception):
    """Base of all errors that raymlp raises on purpose."""

    exit_code = 1


class ConfigError(RaymlpError):
    """A setting is missing, unknown or out of range."""

    exit_code = 2


class DataError(RaymlpError):
    """A source, column or row cannot be used."""


class ContractError(DataError):
    """More rows break the data contract than the budget allows."""


class SourceUnavailable(DataError):
    """A source is not there, or did not answer for as long as its `retry` allows; `data.fallback` stands in for it."""


class BundleError(RaymlpError):
    """A bundle is incomplete, was changed after it was written, or has an unknown format."""


class TrainingError(RaymlpError):
    """Training stopped; the message is the root cause, first line first."""


class RegistryError(RaymlpError):
    """The registry has no such model, version or alias."""


class JobError(RaymlpError):
    """A cluster's jobs API cannot be reached or used, or it has no such job."""


class ServingError(RaymlpError):
    """The endpoint could not be started, reached or changed."""


class VersionAway(ServingError):
    """A version that stands apart has no replica that answers in time."""


class VersionRefused(ServingError):
    """A version cannot be served: it fails its probe, or a replica cannot load it."""


class RequestError(RaymlpError):
    """One request row does not fit the contract.

    `field` names the place (`instances[0].carrier`), `found` and `expected` are for people.
    """

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(f"{field} is {found}; expected {expected}{'' if expected.endswith('?') else '.'}")
        self.field, self.found, self.expected = field, found, expected

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str, str]]:
        return type(self), (self.field, self.found, self.expected)


class GateRefused(RaymlpError):
    """The gate looked at the evidence and said no."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
