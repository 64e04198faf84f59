"""The models: policy and reference, their sources, and their adaptation."""
