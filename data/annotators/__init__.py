"""One file per rule that maps a ``Row`` to the rewards and costs of both responses."""
