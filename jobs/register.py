"""`raymlp register` as a job: ray job submit --working-dir . -- python jobs/register.py experiment=flights"""

from raymlp.cli import job

job("register")
