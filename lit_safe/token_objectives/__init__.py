"""Losses of single tokens for fine-tuning. One file per method."""
