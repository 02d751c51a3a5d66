"""Published methods that have more of their own than losses and sizes, by the names that recipes have for them.

A new one is a class in a file of this package (`Method` says what it may override) and a line in `METHODS`.
"""

from collections.abc import Sequence
from typing import Any

from stages.distillation.recipe_lines import build_from_line
from stages.methods.assistants import Assistants
from stages.methods.auxiliary_branches import AuxiliaryBranches
from stages.methods.base import Method
from stages.methods.grain import Grain
from stages.methods.hard_candidates import HardCandidates
from stages.methods.lead import Lead
from stages.methods.many_heads import ManyHeads
from stages.methods.oracle_teacher import OracleTeacher
from stages.methods.prompts import Panda, SoftPrompt
from stages.methods.sparse_ngrams import SparseNGrams
from stages.methods.token_agreement import TokenAgreement

METHODS: dict[str, type[Method]] = {
    "assistants": Assistants,
    "auxiliary_branches": AuxiliaryBranches,
    "grain": Grain,
    "hard_candidates": HardCandidates,
    "lead": Lead,
    "many_heads": ManyHeads,
    "oracle_teacher": OracleTeacher,
    "panda": Panda,
    "plain": Method,
    "soft_prompt": SoftPrompt,
    "sparse_ngrams": SparseNGrams,
    "token_agreement": TokenAgreement,
}


def build_method(line: str | dict[str, Any], reads: Sequence[str] = ()) -> Method:
    """The method of a recipe's student.

    Args:
        line: its name, or {name: settings}.

    Raises:
        ValueError: there is no such method or setting, or a setting's value is refused.
    """
    return build_from_line(line, METHODS, "method", {"reads": tuple(reads)})
