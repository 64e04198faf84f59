"""Fused operations. Knows torch and triton, and nothing of the rest."""
