"""`raymlp crossvalidate` as a job: ray job submit --working-dir . -- python jobs/crossvalidate.py experiment=flights data.split.folds=5"""

from raymlp.cli import job

job("crossvalidate")
