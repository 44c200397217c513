"""`raymlp reproduce` as a job: ray job submit --working-dir . -- python jobs/reproduce.py flights@champion"""

from raymlp.cli import job

job("reproduce")
