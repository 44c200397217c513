"""Verbs of who may ask, and of who did what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raymlp.cli.command import KeysFile, Overrides, audit, keys
from raymlp.cli.screens import SHOWN_TRIALS, show_columns, show_done


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    overrides: Overrides = None,
    roles: Annotated[str, typer.Option(help="What it allows, comma separated: predict, feedback, operate.")] = "predict",
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires; without it, it does not.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests a second, in place of serve.rate_limit.")] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="Requests at once after a pause, with --rate.")] = None,
    file: KeysFile = Path("keys.json"),
) -> None:
    """Make a key and show it once; the file keeps its hash. Endpoints with serve.keys_file know it within seconds."""
    from datetime import UTC, datetime, timedelta

    from raymlp.config.access import RateLimit
    from raymlp.config.loader import load_site
    from raymlp.core.errors import ConfigError
    from raymlp.runtime.audit import record
    from raymlp.serve.keys import add_key as add
    from raymlp.serve.keys import revoke_key as revoke

    site, allowed = load_site(overrides or ()), tuple(part.strip() for part in roles.split(","))
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    if burst is not None and rate is None:
        raise ConfigError(f"--burst is {burst} without --rate; expected both, or --rate alone.")
    limit = None if rate is None else RateLimit(requests_per_s=rate, burst=burst)
    key = add(file, name, allowed, expires, limit=limit)
    try:
        facts = {"roles": allowed, "expires": expires and expires.isoformat(), "requests_per_s": rate}
        record(site.runtime, "key added", model="", version="", key=name, **facts)
    except BaseException:  # a key that is neither recorded nor shown must not open anything
        revoke(file, name)
        raise
    show_done(
        {"key": key, "allows": ", ".join(allowed), "until": f"{expires:%Y-%m-%d %H:%M} UTC" if expires else "revoked", "file": str(file)}
    )


@keys.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Whose key goes.")], overrides: Overrides = None, file: KeysFile = Path("keys.json")
) -> None:
    """Take a key out of the file; endpoints refuse it within seconds."""
    from raymlp.config.loader import load_site
    from raymlp.runtime.audit import record
    from raymlp.serve.keys import revoke_key as revoke

    site = load_site(overrides or ())
    revoke(file, name)
    record(site.runtime, "key revoked", model="", version="", key=name)


@keys.command("list")
def list_keys(file: KeysFile = Path("keys.json")) -> None:
    """Names, roles, limits and ends of the keys in a file."""
    from datetime import UTC, datetime

    from raymlp.serve.keys import read_keys

    now = datetime.now(UTC)
    ends = {
        key.name: "" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M} UTC{', expired' * key.is_expired(now)}"
        for key in read_keys(file).keys
    }
    limits = {key.name: f"{key.limit.requests_per_s:g}/s" if key.limit else "" for key in read_keys(file).keys}
    rows = [(key.name, ", ".join(key.roles), limits[key.name], ends[key.name]) for key in read_keys(file).keys]
    show_columns(("name", "allows", "limit", "until"), rows)


@audit.command("verify")
def verify_audit(
    overrides: Overrides = None,
    head: Annotated[str, typer.Option(help="A hash noted earlier, which must still be in the log.")] = "",
) -> None:
    """Check the chain of hashes; exit code 1 names the first line that does not hold."""
    from raymlp.config.loader import load_site
    from raymlp.runtime.audit import audit_file, verify

    file = audit_file(load_site(overrides or ()).runtime)
    chain = verify(file, head=head)
    show_done({"log": str(file), "entries": f"{chain.entries:,}, each whole and in its place", "head": chain.head})


@audit.command("show")
def show_audit(
    overrides: Overrides = None, last: Annotated[int, typer.Option(min=1, help="Entries, from the last one back.")] = SHOWN_TRIALS
) -> None:
    """The last entries, after the whole chain was checked."""
    from collections import deque

    from raymlp.config.loader import load_site
    from raymlp.runtime.audit import audit_file, entries

    found = deque(entries(audit_file(load_site(overrides or ()).runtime)), maxlen=last)
    told = [" ".join(f"{name}={value}" for name, value in entry["details"].items()) for entry in found]
    rows = [(e["time"][:19], e["who"], e["what"], e["model"], e["version"], words) for e, words in zip(found, told, strict=True)]
    show_columns(("UTC", "who", "what", "model", "version", "details"), rows)
