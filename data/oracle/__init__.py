"""A small language world with a known reward and cost of every text, in which every response can be listed.

``world`` holds the texts with their reward and cost, ``truth`` what is optimal and the exact measurements of a policy,
and ``study`` trains and reports. Each imports only those before it.
"""

import lit_safe.moved  # noqa: F401  an import of a module's old name says the new one
