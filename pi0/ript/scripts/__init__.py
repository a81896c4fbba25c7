"""Trainers that are part of the package."""
