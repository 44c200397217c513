"""From a snapshot to a bundle: Ray Data feeds Ray Train workers that run Lightning under ddp or DeepSpeed ZeRO."""
