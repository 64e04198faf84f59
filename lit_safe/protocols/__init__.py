"""The interfaces that models and data meet."""
