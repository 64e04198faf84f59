"""Policies and references of which each rank holds a part (torch's FSDP2), through Lightning's strategy."""
