"""Responses of a policy: the one engine that samples them, and the calls of cost functions that score them."""
