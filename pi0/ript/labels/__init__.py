"""What a value function says of frames: returns, advantages, thresholds, indicators and their files."""
