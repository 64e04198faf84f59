"""One file a rule: from a ``Row`` to rewards and costs of both responses."""
