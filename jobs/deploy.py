"""`raymlp deploy` as a job: ray job submit --working-dir . -- python jobs/deploy.py experiment=flights"""

from raymlp.cli import job

job("deploy")
