"""Reinforcement-learning post-training of pi0: environments, rollouts, advantages, the ladder modules."""
