"""Moving traffic from champion to challenger: facts, what they say, the decision, and the record of a rollout. No Ray.

`facts` is what is known, `sequential` the tests, `errors`, `latency`, `distribution`, `quality`, `business` and `ratio` the questions,
`policy` the decision, `outlook` what to expect before the start, `course` the record of a rollout and what its verbs do to it, `orders` how
they are asked for, `lease` who may carry them out, `drive` one look at it all.
"""
