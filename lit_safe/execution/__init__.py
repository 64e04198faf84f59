"""How models are run outside of training steps: context, ranks, devices, random states, memory, progress."""
