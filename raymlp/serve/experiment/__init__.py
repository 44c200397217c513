"""Versions compared on live traffic: what is seen, intervals that may be looked at any time, verdicts, a bandit. No Ray.

`observations` is what is known, `intervals` the arithmetic, `analysis` what the metrics say, `verdict` what follows from it, `bandit` the
weights that follow, `expected` what to expect before the start, `record` the record of an experiment. `readings` takes the observations
from the prediction log, `report` makes the page.
"""
