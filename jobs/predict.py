"""`raymlp predict` as a job: ray job submit --working-dir . -- python jobs/predict.py flights@champion data.source.path=new.csv"""

from raymlp.cli import job

job("predict")
