"""`raymlp rollout` as a job: ray job submit --working-dir . -- python jobs/rollout.py start experiment=flights"""

from raymlp.cli import job

job("rollout")
