"""A small language world with a known reward and cost of every text, in which every response can be listed."""
