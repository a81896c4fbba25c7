"""Supervised training of policies and value functions: settings, objectives, optimizer, steps."""
