"""`raymlp evaluate` as a job: ray job submit --working-dir . -- python jobs/evaluate.py experiment=flights"""

from raymlp.cli import job

job("evaluate")
