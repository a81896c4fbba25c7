"""Runs that version 0.1.0 made, and what continues them; see make.py."""
