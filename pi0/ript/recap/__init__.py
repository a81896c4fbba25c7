"""RECAP: a value function labels data as better or worse than expected, and the policy learns the labels.

In order: `returns` (sparse reward), `value_training`, `gates`, `advantages`, `policy_training`.
"""
