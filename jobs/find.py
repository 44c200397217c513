"""`raymlp find` as a job: ray job submit --working-dir . -- python jobs/find.py learning-rate experiment=flights"""

from raymlp.cli import job

job("find")
