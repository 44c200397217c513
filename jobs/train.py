"""`raymlp train` as a job: ray job submit --working-dir . -- python jobs/train.py experiment=flights"""

from raymlp.cli import job

job("train")
