"""Responses in the files of other tools: lm-evaluation-harness and Inspect; and in our own Parquet file."""
