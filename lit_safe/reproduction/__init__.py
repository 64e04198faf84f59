"""Runs both papers' methods at a scale, and reports their published figures beside ours, never mixed."""
