"""`raymlp contract` as a job: ray job submit --working-dir . -- python jobs/contract.py experiment=flights --check contract.yaml"""

from raymlp.cli import job

job("contract")
