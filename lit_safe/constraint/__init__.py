"""The limit on the cost: estimates of E[cost], the multiplier and its steps, and whether the limit is met."""
