"""What is said in the oracle world, and its reward and cost: texts, tables, and the data made of them."""

from data.oracle.world.judge import Costs, Judge
from data.oracle.world.tables import World, oracle_world

__all__ = ["Costs", "Judge", "World", "oracle_world"]
