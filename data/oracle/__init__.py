"""A small language world in which reward and cost of every text are known and every response can be listed."""
