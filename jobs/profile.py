"""`raymlp profile` as a job: ray job submit --working-dir . -- python jobs/profile.py experiment=flights"""

from raymlp.cli import job

job("profile")
