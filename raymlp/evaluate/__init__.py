"""How good is the model: metrics with intervals, simple baselines, slices, a report, and the gate."""
