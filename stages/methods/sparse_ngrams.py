"""Sparse distillation (Ye et al., arXiv 2110.08536): the teacher's answers teach a student of word n-grams."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.distillation.losses import Loss
from stages.distillation.models import new_classifier
from stages.distillation.outputs import CaptureSpec
from stages.distillation.settings import check_type, number, whole
from stages.distillation.students.ngrams import NGramsConfig
from stages.methods.base import Method
from stages.tasks.task import Task
from stages.training.options import Training
from stages.training.stage import Stage
from stages.training.step import Step, StepKind

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


class SparseNGrams(Method):
    """The student knows the most frequent n-grams of the training text, labelled or not; its table trains sparsely.

    Args:
        ngrams: maximum number of n-grams (paper: a million).
        longest: number of words of the longest n-gram (paper: 4).
        drop: fraction of a row's n-grams that are left out in training (paper: 0.1).
    """

    def __init__(self, ngrams: int = 1_000_000, longest: int = 4, drop: float = 0.1):
        super().__init__()
        self.ngrams, self.longest = whole(ngrams, 1, 10**8, "ngrams"), whole(longest, 1, 8, "longest")
        self.drop = number(drop, "from 0 to below 1", "drop")

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse students of another kind, pairs, and words with labels."""
        check_type(student, (NGramsConfig.model_type,), "does not read n-grams", argument="kind")
        if task.token_level or task.splits["train"].text_b is not None:
            what = "words with labels" if task.token_level else "two texts a row"
            raise UserError(
                f"{what} are not for sparse_ngrams, whose rows are one text; take plain", argument="method"
            )

    def begin(self, stage: Stage, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The student with its n-grams, and the tokenizer of their words."""
        texts = [
            text
            for name in ("train", "unlabelled")
            if name in task.splits
            for text in task.splits[name].text_a
        ]
        tokenizer, words_KO = counted(texts, self.ngrams, self.longest)
        sizes = stage.options["student"]
        config = NGramsConfig(
            vocab_size=len(tokenizer), ngrams=len(words_KO), longest=self.longest, drop=self.drop,
            hidden_size=sizes["width"], hidden_dropout_prob=sizes["dropout"],
        )  # fmt: skip
        torch.manual_seed(stage.seed)
        student: Any = new_classifier(config, task.kind)
        known = student.learn(words_KO)
        self.found = {"n-grams": known, "words": len(tokenizer) - len(SPECIAL)}
        stage.log(
            f"{known:,} n-grams of {self.found['words']:,} words; {len(words_KO) - known:,} more fell into full slots"
        )
        return student, tokenizer

    def step(self, model: Distillation, training: Training) -> Step:
        """SparseAdam for the table, Adam for the rest, with the paper's betas; no weight decay on the table."""

        def optimizers(parameters: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
            table = [p for name, p in parameters.items() if name == "student.embeddings.weight"]
            others = [p for name, p in parameters.items() if name != "student.embeddings.weight"]
            rate, betas = training.learning_rate, (0.9, 0.98)
            return [
                torch.optim.SparseAdam(table, lr=rate, betas=betas),
                torch.optim.AdamW(others, lr=rate, betas=betas, weight_decay=training.weight_decay),
            ]

        return Step(optimizers=optimizers)

    def step_kind(self, losses: Iterable[Loss]) -> StepKind:
        """Each part has an optimiser of its own."""
        return StepKind(optimizers=True)


def counted(texts: Iterable[str], most: int, longest: int) -> tuple[PreTrainedTokenizerFast, np.ndarray]:
    """The most frequent n-grams of some texts, and a tokenizer of their words: lower case, letters and digits alone.

    Args:
        most: maximum number of n-grams.
        longest: words of the longest.

    Returns:
        The tokenizer, and the n-grams as its word ids (K, longest), the most frequent first, filled up with 0.

    Raises:
        ValueError: the texts have no words.

    Example:
        >>> tokenizer, words = counted(["a good film", "a good cast"], most=3, longest=2)
        >>> [tokenizer.decode(ids[ids > 0]) for ids in words]
        ['a', 'a good', 'good']
    """
    lower, split = normalizers.Lowercase(), pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True)

    def words_of(text: str) -> list[str]:
        return [word for word, _ in split.pre_tokenize_str(lower.normalize_str(text))]

    counter = CountVectorizer(
        tokenizer=words_of, token_pattern=None, lowercase=False, ngram_range=(1, longest), max_features=most
    )
    try:
        counts = np.asarray(counter.fit_transform(texts).sum(0))[0]
    except ValueError as error:
        raise UserError(f"the training text has no words ({error}); give rows with text") from error
    names = counter.get_feature_names_out()
    order = np.lexsort((names, -counts))
    ngrams = [names[i].split(" ") for i in order]
    words = sorted({word for ngram in ngrams for word in ngram})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    backend.normalizer, backend.pre_tokenizer = lower, split
    frame = [(token, vocabulary[token]) for token in (SPECIAL["cls_token"], SPECIAL["sep_token"])]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A [SEP] $B", special_tokens=frame
    )
    words_KO = np.zeros((len(ngrams), longest), np.int64)
    for row_O, ngram in zip(words_KO, ngrams, strict=True):
        row_O[: len(ngram)] = [vocabulary[word] for word in ngram]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL), words_KO
