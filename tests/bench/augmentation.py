"""Work: variants of SST-2's training rows, exact candidates against one word at a time."""

import statistics
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from transformers import BertConfig, BertForMaskedLM

from data_aug.replaceable_words import content_words
from data_aug.variants import Candidates, Row, Settings, augment_rows
from data_aug.word_prediction import MaskedLM, Query
from data_aug.word_vectors import WordVectors
from stages.distillation.compatibility import forward_flops
from stages.tasks.packages import packaged_vectors
from stages.training.stage import PRECISIONS
from tests.bench.machine import Machine, seconds
from tests.bench.place import Place
from tests.bench.work import Work
from tests.data_aug.speed import K, Plain


class Models:
    """The two ways to find candidates, made when first asked for."""

    def __init__(self, place: Place):
        self.place = place

    @cached_property
    def model(self) -> BertForMaskedLM:
        torch.manual_seed(0)
        return BertForMaskedLM(BertConfig()).eval().to(self.place.device)

    @cached_property
    def vectors(self) -> WordVectors:
        return WordVectors.read(packaged_vectors())

    @cached_property
    def plain(self) -> Plain:
        return Plain(self.model, self.place.tokenizer, self.vectors, grad=True)

    def ours(self, dtype: torch.dtype) -> Candidates:
        return Candidates(MaskedLM(self.model, self.place.tokenizer, dtype=dtype), self.vectors, K)


def augmentation(place: Place, plain_rows: int = 20, our_rows: int = 100) -> Work:
    """Variants a second; a shard of the pipeline has 100 rows, the reference gets a part of the same."""
    models, needed = Models(place), []

    def variants(find: Callable[[], Callable], count: int) -> Callable[[int], float]:
        def measured(repeat: int) -> float:
            texts = [
                text
                for (text,) in sorted(place.texts("sst-2", our_rows, repeat), key=lambda row: len(row[0]))
            ]
            step = our_rows // (count if repeat >= 0 else 4)
            texts = texts[step // 2 :: step]  # a part that is as long as the whole
            candidates = find()
            models.vectors._known.clear()  # the neighbours of an earlier repeat
            made = []
            rows = [(text, None) for text in texts]

            def run() -> None:
                made.append(augment_rows(rows, candidates, Settings(), seed=0)[1].variants)

            took = seconds(run, place.device)
            if count == our_rows and repeat >= 0:  # ours, after the warm-up
                needed.append(flops_of(rows, models) / made[0])
            return made[0] / took

        return measured

    def limit(machine: Machine) -> float:
        """Of the texts that were measured: those of one repeat need half as much again as another's."""
        return 1 / machine.seconds(statistics.median(needed), 0, place.precision)

    def agrees() -> bool:
        asked = _queries(place.texts("sst-2", 12, 0))[:30]
        found = zip(models.plain(asked), models.ours(torch.float32)(asked), strict=True)
        return all(set(plain.words) == set(exact.words) for plain, exact in found)

    return Work(
        "augment-sst2", "variants/s", 8, variants(lambda: models.plain, plain_rows),
        variants(lambda: models.ours(PRECISIONS[place.precision]), our_rows), limit, agrees,
    )  # fmt: skip


def flops_of(rows: Sequence[Row], models: Models) -> float:
    """A pass over the sentence twice for each masked word; what follows the last attention, and the vocabulary, at the mask."""
    config, tokenizer, flops = models.model.config, models.place.tokenizer, 0.0
    after_attention = 2 * config.hidden_size * (config.hidden_size + 2 * config.intermediate_size)
    for query in _queries(rows):
        if len(tokenizer.tokenize(query.text[query.start : query.end])) == 1:
            tokens = 2 * len(tokenizer.tokenize(query.text)) + 3
            flops += forward_flops(config, tokens, tokens) - after_attention * (tokens - 1)
            flops += 2 * config.hidden_size * (config.hidden_size + config.vocab_size)
    return flops


def _queries(rows: Sequence[Sequence[str | None]]) -> list[Query]:
    return [Query(text, *span, text) for row in rows for text in row if text for span in content_words(text)]
