"""StrongREJECT: 313 harmful requests in six categories. Souly et al. 2024, arXiv:2402.10260."""

from data.sources.suite import Suite


class StrongREJECT(Suite):
    """The authors' CSV file (columns category, source, forbidden_prompt), or ``walledai/StrongREJECT`` on the hub.

    The other arguments are those of ``Suite``.
    """

    licence = "MIT"
    prompt_columns = ("forbidden_prompt", "prompt")
