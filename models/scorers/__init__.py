"""Scorers of text: harm of a response as a cost, and whether a response refuses."""
