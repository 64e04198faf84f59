"""Tests of a limit on held-out responses: bounds of a share and of a bounded mean, verdicts, and what they need."""
