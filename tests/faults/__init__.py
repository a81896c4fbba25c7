"""Runs with faults in them, and the table of what they have to come to."""
