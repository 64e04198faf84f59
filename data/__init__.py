"""Training data: sources, annotators, tokenising, packing and splits."""
