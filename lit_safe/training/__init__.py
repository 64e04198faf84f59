"""Trains models: preference training, fine-tuning and score models."""
