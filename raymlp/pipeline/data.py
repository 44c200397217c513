"""What a table becomes: a plan of the job, a snapshot, a page, a contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raymlp.config.loader import with_overrides
from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError
from raymlp.core.files import write_text
from raymlp.core.records import (
    DataReport,
    PlanReport,
    Snapshot,
)
from raymlp.data.place import snapshot_root
from raymlp.runtime.progress import SilentStory, Story
from raymlp.runtime.session import ray_session, storage_root

if TYPE_CHECKING:
    from raymlp.data.rules import BrokenRule


def plan(config: Config) -> PlanReport:
    """Preflight, without Ray: what a run would do, and every problem that would stop it."""
    from raymlp.preflight import preflight

    return preflight(config)


def prepare(config: Config, *, story: Story | None = None) -> Snapshot:
    """Read, join, check, split and profile the data; an unchanged snapshot is found again."""
    from raymlp.data import snapshot

    with ray_session(config.runtime), (story or SilentStory()).step("prepare") as step:
        made = snapshot.prepare(config.problem, config.data, snapshot_root(config.runtime), say=step.say)
        rows = ", ".join(f"{count:,} {split}" for split, count in made.rows.items())
        step.result(
            f"snapshot {made.digest[:12]}{' (unchanged, reused)' if made.reused else ''}: {rows}; {made.quarantined:,} in quarantine"
            + (f"; {made.growth}" if made.growth and not made.reused else "")
        )
        if not made.reused:
            for note in (*snapshot.warnings_of(made.path), *made.notes):
                step.note(note)
    return made


def profile(config: Config, *, snapshot: Snapshot | None = None, story: Story | None = None) -> DataReport:
    """Show what the data holds as one HTML page, from the profiles that the snapshot keeps. Needs no Ray where there is one."""
    from raymlp.data.profile_page import write_page
    from raymlp.data.snapshot import find

    snapshot = snapshot or find(config.problem, config.data, snapshot_root(config.runtime)) or prepare(config, story=story)
    with (story or SilentStory()).step("profile") as step:
        folder = storage_root(config.runtime) / "profiles" / config.problem.name / snapshot.digest[:12]
        page = write_page(snapshot, config.problem, config.monitor, folder=folder)
        step.result(f"{page.stat().st_size / 1e3:,.0f} kB")
    return DataReport(snapshot, page)


def infer_contract(config: Config, out: Path, *, force: bool = False, story: Story | None = None) -> Path:
    """Write the contract that the training rows keep to `out`, for a person to edit. Raises ConfigError when it exists."""
    from raymlp.data.snapshot import load_contract

    if out.exists() and not force:
        raise ConfigError(f"{out} exists; expected a new file. Choose another --out, or overwrite it with --force.")
    snapshot = prepare(with_overrides(config, {"data.contract": None}), story=story)
    return write_text(out, load_contract(snapshot.path).to_yaml())


def check_contract(config: Config, contract: Path, *, story: Story | None = None) -> list[BrokenRule]:
    """Rules of a contract file that the source breaks; empty when it keeps them. Publishes nothing."""
    from raymlp.data.conformance import check_source

    given = with_overrides(config, {"data.contract": str(contract)})
    with ray_session(config.runtime), (story or SilentStory()).step("contract") as step:
        step.say("checking every row")
        broken = check_source(given.problem, given.data, snapshot_root(config.runtime))
        step.result(f"{len(broken)} rules broken" if broken else "every row keeps the contract")
    return broken
