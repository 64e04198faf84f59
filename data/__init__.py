"""What a policy is trained on: sources, annotators, tokenising, packing and splits."""
