"""`raymlp run` as a job: ray job submit --working-dir . -- python jobs/run.py experiment=flights"""

from raymlp.cli import job

job("run")
