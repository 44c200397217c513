"""`raymlp prepare` as a job: ray job submit --working-dir . -- python jobs/prepare.py experiment=flights"""

from raymlp.cli import job

job("prepare")
