"""The kinds of tasks. To add one, write a subclass of `Kind` in a file here, and add it to `KINDS`.

A reader gives its task one of them. All that depends on the kind asks it: a model's config, metrics and their
intervals, what the report compares, and how answers are written.
"""

from stages.tasks.kinds.base import Kind
from stages.tasks.kinds.classes import Classes, ImageClasses, Nodes, Words
from stages.tasks.kinds.entities import Entities
from stages.tasks.kinds.image_texts import ImageTexts
from stages.tasks.kinds.label_sets import LabelSets
from stages.tasks.kinds.questions import Questions
from stages.tasks.kinds.ranking import Ranking
from stages.tasks.kinds.scores import Scores, Similarity
from stages.tasks.kinds.sequences import Sequences

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (Classes, Entities, ImageClasses, ImageTexts, LabelSets, Nodes, Questions, Ranking, Scores, Sequences,
                 Similarity, Words)
}  # fmt: skip
