"""Verbs as jobs on a cluster: checked here, found again by what they do, watched by their state."""
