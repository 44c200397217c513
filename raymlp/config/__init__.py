"""What can be set: YAML holds values, these sections hold meaning. Needs neither Ray nor torch."""

from raymlp.config.schema import Config

__all__ = ["Config"]
