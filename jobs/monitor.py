"""`raymlp monitor` as a job: ray job submit --working-dir . -- python jobs/monitor.py experiment=flights"""

from raymlp.cli import job

job("monitor")
