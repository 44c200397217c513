"""The endpoint: one Ray Serve application, its versions and weights, its prediction log, and the rollout's decision."""
