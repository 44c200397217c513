"""Versions and aliases of models, in MLflow's registry."""
