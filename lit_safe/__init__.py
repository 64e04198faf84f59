"""Aligning a language model to preferences while keeping a stated safety limit. This package imports nothing itself."""
