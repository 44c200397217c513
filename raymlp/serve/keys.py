"""API keys of the endpoint: names, roles, an end, and no key itself: a file holds the SHA-256 of each.

A key has 256 random bits, so its plain hash cannot be turned back by trying. The file can be changed while replicas run; they look at it
every second. No Ray, no web framework.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from raymlp.config.access import ROLES, RateLimit, Role
from raymlp.config.section import Section
from raymlp.core.errors import ConfigError, nearest
from raymlp.core.files import write_text

log = logging.getLogger("ray.serve")
PREFIX = "rml_"
"""First characters of a key that was made here, so that scanners of code and logs can tell one."""
LOOK_S = 1.0
"""How often the file is looked at."""
GRACE_S = 60.0
"""How long keys that were read before stay valid while the file is gone or broken."""


class ApiKey(Section):
    """One key, without the key."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Whose it is, for people."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hex SHA-256 of the key."""
    roles: tuple[Role, ...] = Field(min_length=1)
    """What it allows."""
    expires: AwareDatetime | None = None
    """Moment from which it is refused; null never comes."""
    limit: RateLimit | None = None
    """Its own limit in place of `serve.rate_limit`."""

    def is_expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires


class KeyFile(Section):
    """What a file of keys holds."""

    version: Literal[1] = 1
    """Format of the file."""
    keys: tuple[ApiKey, ...] = ()
    """The keys, each with a name of its own."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [key.name for key in self.keys]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the name '{twice}' is there twice; expected one key a name")
        return self


class Refusal(Exception):
    """A request is not let in: 401 for a key that is missing, unknown or expired, 403 for one without the role, 429 for one that
    asks too much, with the seconds to wait."""

    def __init__(self, status: Literal[401, 403, 429], found: str, expected: str, *, wait_s: float = 0.0) -> None:
        super().__init__(f"{found}; expected {expected}")
        self.status, self.found, self.expected, self.wait_s = status, found, expected, wait_s
        self.field = "requests" if status == 429 else "Authorization"


def key_hash(key: str) -> str:
    """Hex SHA-256 of an API key: what is kept in place of the key."""
    return sha256(key.encode()).hexdigest()


def given_keys(text: str) -> tuple[ApiKey, ...]:
    """Keys of an environment variable, comma separated, each with every role and no end."""
    found = [key for key in (part.strip() for part in text.split(",")) if key]
    return tuple(ApiKey(name=f"environment-{place}", sha256=key_hash(key), roles=ROLES) for place, key in enumerate(found, start=1))


def read_keys(file: Path) -> KeyFile:
    """The keys of a file. Raises ConfigError when it cannot be read, is no such file, or others than its owner may read or write it."""
    try:
        mode = file.stat().st_mode
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); expected a file of keys. Make one: raymlp keys add NAME.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{file} has mode {stat.S_IMODE(mode):04o}; expected 0600, since who can write it can let himself in. chmod 600.")
    try:
        return KeyFile.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(map(str, detail["loc"])) or "it"
        raise ConfigError(f"{file} holds no keys: {where}: {detail['msg']}. Make it with raymlp keys add NAME.") from None


def add_key(file: Path, name: str, roles: Sequence[str], expires: datetime | None = None, *, limit: RateLimit | None = None) -> str:
    """Make a key, put it into the file (made when there is none), and give it back: it is kept nowhere.

    Raises ConfigError when the name is taken or is none, or a role is unknown.
    """
    unknown = next((role for role in roles if role not in ROLES), None)
    if unknown is not None:
        raise ConfigError(f"'{unknown}' is no role; expected some of {', '.join(ROLES)}.{nearest(unknown, ROLES)} Set --roles.")
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        allowed = tuple(role for role in ROLES if role in roles)
        made = ApiKey(name=name, sha256=key_hash(key), roles=allowed, expires=expires, limit=limit)
    except ValidationError as error:
        raise ConfigError(f"'{name}' is no name of a key ({error.errors()[0]['msg']}); expected letters, digits, '_', '.', '-'.") from None
    with _alone(file):
        present = read_keys(file).keys if file.exists() else ()
        if name in {known.name for known in present}:
            raise ConfigError(f"{file} has a key '{name}' already; expected a new name. Revoke it first, or choose another, as {name}-2.")
        _write(file, KeyFile(keys=(*present, made)))
    return key


def revoke_key(file: Path, name: str) -> None:
    """Take a key out of the file. Raises ConfigError when it is not there."""
    read_keys(file)  # else a lock would be left beside a file that is none
    with _alone(file):
        present = read_keys(file).keys
        left = tuple(key for key in present if key.name != name)
        if len(left) == len(present):
            names = [key.name for key in present]
            raise ConfigError(f"{file} has no key '{name}'; expected one of {', '.join(names) or 'none'}.{nearest(name, names)}")
        _write(file, KeyFile(keys=left))


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Change the file alone, from reading it to writing it; others wait. Else a key that was revoked could come back.

    The lock is a file beside it, since a file that is replaced takes its own lock along. Raises ConfigError when it cannot be made.
    """
    lock = file.with_name(f".{file.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{lock} cannot be written ({error.strerror}); expected a folder that can be. Set --file.") from None
    with os.fdopen(descriptor, "r+b"):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _write(file: Path, keys: KeyFile) -> None:
    write_text(file, json.dumps(keys.model_dump(mode="json"), indent=2) + "\n", mode=0o600)


class KeyRing:
    """The keys that are valid now: fixed ones, and those of a file that may change."""

    def __init__(self, fixed: Sequence[ApiKey], file: Path | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError when the file cannot be used."""
        self._fixed, self._file, self._clock = tuple(fixed), file, clock
        self._hold(self._fixed)
        self._mark: tuple[int, ...] = ()
        self._looked, self._broken_since = clock(), -1.0
        if file is not None:
            self._mark = _mark(file)
            self._hold((*self._fixed, *read_keys(file).keys))

    def _hold(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = keys
        self._digests = tuple((bytes.fromhex(key.sha256), key) for key in keys)

    def refresh(self) -> None:
        """Look at the file when a second has passed. A file that is gone or broken leaves its keys valid for a minute, then only the
        fixed ones; both are logged."""
        now = self._clock()
        if self._file is None or now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            mark = _mark(self._file)
            if mark != self._mark or self._broken_since >= 0:
                self._hold((*self._fixed, *read_keys(self._file).keys))
                self._mark, self._broken_since = mark, -1.0
        except (OSError, ConfigError) as error:
            if self._broken_since < 0:
                self._broken_since = now
                log.error("keys stay as they are for %g s: %s", GRACE_S, error)
            elif now - self._broken_since > GRACE_S and self._keys != self._fixed:
                self._hold(self._fixed)
                log.error("keys of %s are no longer let in: %s", self._file, error)

    def let_in(self, header: bytes, role: Role, *, now: datetime | None = None) -> ApiKey:
        """The key of `Authorization: Bearer KEY`. Takes as long for a near miss as for a far one. Raises Refusal."""
        self.refresh()
        scheme, _, key = header.partition(b" ")
        given, found = sha256(key.strip()).digest(), None
        for digest, known in self._digests:
            if hmac.compare_digest(given, digest):
                found = known
        if found is None or scheme.lower() != b"bearer":
            raise Refusal(401, "missing or unknown", "Bearer and one of the endpoint's keys")
        if found.expires is not None and found.is_expired(now or datetime.now(UTC)):
            raise Refusal(401, f"a key that expired on {found.expires:%Y-%m-%d}", "a key that is valid")
        if role not in found.roles:
            raise Refusal(403, f"a key for {' and '.join(found.roles)}", f"a key with the role {role}")
        return found


def _mark(file: Path) -> tuple[int, ...]:
    """Changes when the file does."""
    found = os.stat(file)
    return found.st_mtime_ns, found.st_size, found.st_ino
