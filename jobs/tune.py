"""`raymlp tune` as a job: ray job submit --working-dir . -- python jobs/tune.py experiment=flights"""

from raymlp.cli import job

job("tune")
