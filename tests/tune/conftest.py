"""The planted snapshots of the training tests."""

from tests.train.conftest import snapshots

__all__ = ["snapshots"]
