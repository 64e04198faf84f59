"""Scorers of text: the harm of a response as a cost, and whether a response is a refusal."""
