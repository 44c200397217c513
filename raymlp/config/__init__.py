"""What can be set: YAML holds values, these sections hold meaning. Needs neither Ray nor torch."""
