"""The command line: a verb, then Hydra overrides. `jobs/*.py` are the same doors for `ray job submit`.

Exit codes: 0 done, 1 a run failed, 2 wrong configuration, 3 the gate refused, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

# --help lists verbs in the order in which their modules are loaded
# isort: off
import raymlp.cli.data
import raymlp.cli.training
import raymlp.cli.serving
import raymlp.cli.rollouts
import raymlp.cli.access
import raymlp.cli.trials
import raymlp.cli.jobs
import raymlp.cli.clusters  # noqa: F401

# isort: on
from raymlp.cli.command import Terminated, app, job, main, run_command

__all__ = ["Terminated", "app", "job", "main", "run_command"]
