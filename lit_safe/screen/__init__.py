"""What a run says on the screen: before it starts, after each estimate of the cost, and at its end."""
