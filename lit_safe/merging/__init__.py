"""Merges folders of models by their weights."""
