"""Our own pi0 policy: model, weights, preprocessing. Knows nothing of reinforcement learning."""
