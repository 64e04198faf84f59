"""Evaluation of a policy on held-out pairs and prompts, before and after training."""
