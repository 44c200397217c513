"""`raymlp doctor` as a job: ray job submit --working-dir . -- python jobs/doctor.py experiment=flights"""

from raymlp.cli import job

job("doctor")
