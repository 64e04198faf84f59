"""How a judge is asked about a response, and how its verdict is read: one file per family of judges."""
