"""`raymlp trace` as a job: ray job submit --working-dir . -- python jobs/trace.py flights@champion"""

from raymlp.cli import job

job("trace")
