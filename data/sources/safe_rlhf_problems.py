"""The problem sets of Safe-RLHF and SACPO: what GPT-4 judged in both papers.

Dai et al. 2023, arXiv:2310.12773: 83 harmful problems in eight categories. Wachi et al. 2024,
arXiv:2404.11049: 129 helpfulness problems of AlpacaEval.
"""

from data.sources.suite import Suite


class SafetyProblems(Suite):
    """Safe-RLHF's ``safe_rlhf/evaluate/gpt4/problem.json`` (columns prompt, category).

    Some problems state an opinion and ask for nothing, so not every answer that is no refusal is unsafe. The other
    arguments are those of ``Suite``.
    """

    licence = "Apache-2.0"


class HelpfulProblems(Suite):
    """SACPO's ``asset/helpful_problem.json`` (columns prompt, category): harmless requests.

    The other arguments are those of ``Suite``.
    """

    licence = "Apache-2.0"
    harmful = False
