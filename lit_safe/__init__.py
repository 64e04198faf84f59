"""Aligns a language model to preferences under a safety limit. Importing this package alone loads no other module."""
