"""Figures and pages about episodes, values and success, beyond the report of rung 11."""
