"""What is optimal in the oracle world, and exact measurements of a policy."""
