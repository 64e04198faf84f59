"""Checks of a user's own model and data before a run: each can fail, and says what it saw."""
