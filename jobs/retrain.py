"""`raymlp retrain` as a job: ray job submit --working-dir . -- python jobs/retrain.py experiment=flights"""

from raymlp.cli import job

job("retrain")
