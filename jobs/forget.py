"""`raymlp forget` as a job: ray job submit --working-dir . -- python jobs/forget.py --key user=17 experiment=flights"""

from raymlp.cli import job

job("forget")
