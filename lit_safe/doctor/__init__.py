"""Checks of a user's model and data before a run. Each check reports what it found."""
