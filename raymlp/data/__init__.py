"""From sources to an immutable, profiled, contract-checked snapshot."""
