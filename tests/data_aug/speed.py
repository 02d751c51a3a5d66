"""Variants a second of augmentation against a plain reference, side by side in one run.

    .venv/bin/python -m tests.data_aug.speed SENTENCES.tsv

Sentences: the first column of a TSV file with a header line, such as SST-2's train.tsv. The model has BERT-base's
size and random weights, which serves for timing; `--model DIR` times another BERT and says how far the approximate
candidates agree with the exact ones. The reference is what the published code does, written out: one word at
a time, batch 1, fp32, all logits, with gradients; a full sort of 100,000 word vectors for each of the others.
`--python-alone` tells instead what is left of the time where a GPU computes the model's passes.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from data_aug.replaceable_words import content_words
from data_aug.variants import Candidates, Found, Row, Settings, augment_rows
from data_aug.word_prediction import MOST_TOKENS, MaskedLM, Query
from data_aug.word_vectors import WordVectors
from pipeline.launch.child_process import keep_freed_memory
from stages.distillation.device import has_fast_bf16
from stages.tasks.packages import packaged_teacher, packaged_vectors
from tests.bench.reference import PUBLISHED, run_bert
from tests.data_aug.test_word_prediction import reference

K = 15


class Published:
    """A stock BERT with a masked-LM head, computed as the published code does."""

    def __init__(self, model: BertForMaskedLM):
        self.model, self.config = model, model.config

    def __call__(self, input_ids, attention_mask, token_type_ids) -> SimpleNamespace:
        batch = (x.to(self.model.device) for x in (input_ids, attention_mask, token_type_ids))
        _, hidden = run_bert(self.model.bert, *batch, **PUBLISHED)
        return SimpleNamespace(logits=self.model.cls(hidden[-1]))


class Plain:
    """Candidates as the published code finds them, one word at a time."""

    def __init__(self, model, tokenizer, vectors: WordVectors, grad: bool):
        self.model, self.tokenizer, self.vectors, self.grad = Published(model), tokenizer, vectors, grad
        self.ids = {word: i for i, word in enumerate(vectors.words)}

    def __call__(self, queries: Sequence[Query]) -> list[Found]:
        found = []
        for query in queries:
            words = reference(self.model, self.tokenizer, query, K, self.grad)
            if words is not None:
                found.append(Found(words, "by_masked_lm"))
                continue
            i, near = self.ids.get(query.text[query.start : query.end].lower()), []
            if i is not None:
                order = np.argsort(-(self.vectors.vectors @ self.vectors.vectors[i]))[: K + 1]
                near = [self.vectors.words[j] for j in order if j != i and self.vectors.words[j].isalpha()]
            found.append(Found(near, "by_vectors"))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sentences", type=Path)
    parser.add_argument(
        "--model", help="a BERT with a masked-LM head; none: BERT-base's size, random weights"
    )
    parser.add_argument(
        "--rows", type=int, default=200, help="sentences of a pass [200]; the reference gets a tenth"
    )
    parser.add_argument("--repeats", type=int, default=3, help="passes of each side, alternating [3]")
    parser.add_argument("--python-alone", action="store_true", help="all but the model's passes, alone")
    o = parser.parse_args()
    keep_freed_memory()
    lines = o.sentences.read_text(encoding="utf-8").splitlines()[1:]
    texts = [line.split("\t")[0].strip() for line in lines]
    chosen = np.random.default_rng(0).permutation(len(texts))[: o.rows * o.repeats]
    tokenizer = AutoTokenizer.from_pretrained(o.model or packaged_teacher())
    if o.python_alone:
        rows = [(texts[i], None) for i in chosen[: o.rows]]
        print(f"{_python_alone(rows, tokenizer, o.repeats):.0f} variants a second of processor time")
        return
    if o.model:
        model = BertForMaskedLM.from_pretrained(o.model).eval()
    else:
        torch.manual_seed(0)
        model = BertForMaskedLM(BertConfig()).eval()
    vectors = WordVectors.read(packaged_vectors())
    dtype = torch.bfloat16 if has_fast_bf16("cpu") else torch.float32
    approximate = {"masks_per_pass": 99}

    def ours(kind: torch.dtype, **settings) -> Candidates:
        return Candidates(MaskedLM(model, tokenizer, dtype=kind, **settings), vectors, K)

    sides = {
        "plain, as published": (Plain(model, tokenizer, vectors, True), 10),
        "plain, without gradients": (Plain(model, tokenizer, vectors, False), 10),
        f"exact, {str(dtype).removeprefix('torch.')}": (ours(dtype), 1),
        "approximate, masks 3 apart": (ours(dtype, **approximate, min_distance=3), 1),
        "approximate, masks 1 apart": (ours(dtype, **approximate, min_distance=1), 1),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-1, o.repeats):
        rows = [(texts[i], None) for i in chosen[max(repeat, 0) * o.rows :][: o.rows]]
        for name, (candidates, share) in sides.items():
            vectors._known.clear()  # the neighbours of an earlier pass
            part = rows[:: share * (10 if repeat < 0 else 1)]  # the first pass warms up
            began = time.perf_counter()
            _, counts = augment_rows(part, candidates, Settings(), seed=0)
            if repeat >= 0:
                speeds[name].append(counts.variants / (time.perf_counter() - began))
    base = statistics.median(speeds["plain, as published"])
    print(f"{torch.get_num_threads()} threads, {o.rows} sentences a pass, {o.repeats} passes of each in turn")
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(
            f"{name:<28}{middle:9.1f} variants/s (from {min(values):.1f} to {max(values):.1f}) {middle / base:6.1f}x"
        )
    if o.model:
        _agreement(model, tokenizer, [texts[i] for i in chosen[:100]], dtype, approximate)


def _python_alone(rows: Sequence[Row], tokenizer, repeats: int) -> float:
    """Variants a second of processor time, with a masked LM that answers at random and the neighbours of all words known."""
    tiny = BertConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=1, intermediate_size=12)
    masked_lm = MaskedLM(BertForMaskedLM(tiny), tokenizer, batch_tokens=MOST_TOKENS["cuda"])
    words = torch.arange(4000) >= 1000  # token ids, most of which are words
    masked_lm.logits = lambda inputs, row_N, position_N: torch.rand(len(row_N), len(words)) * words
    candidates = Candidates(masked_lm, WordVectors.read(packaged_vectors()), K)
    augment_rows(rows, candidates, Settings(), seed=0)  # finds the neighbours
    began, made = time.process_time(), 0
    for repeat in range(repeats):
        made += augment_rows(rows, candidates, Settings(), seed=repeat)[1].variants
    return made / (time.process_time() - began)


def _agreement(model, tokenizer, texts: list[str], dtype: torch.dtype, approximate: dict) -> None:
    """How far other modes find the candidates of the exact one in fp32."""
    queries = [Query(text, *span, text) for text in texts for span in content_words(text)]
    exact = MaskedLM(model, tokenizer).candidates(queries, K)
    for i in range(0, len(queries), 10):
        plain = reference(model, tokenizer, queries[i], K)
        assert set(plain or []) == set(exact[i] or []), queries[i]
    print(f"exact fp32 equals the plain reference on {len(range(0, len(queries), 10))} words")
    for name, masked_lm in {
        f"exact {dtype}": MaskedLM(model, tokenizer, dtype=dtype),
        **{
            f"masks {d} apart": MaskedLM(model, tokenizer, min_distance=d, **approximate)
            for d in (1, 2, 3, 6)
        },
    }.items():
        pairs = [(a, b) for a, b in zip(exact, masked_lm.candidates(queries, K), strict=True) if a]
        shared = statistics.mean(len(set(a) & set(b)) / len(a) for a, b in pairs)
        first = statistics.mean(a[:1] == b[:1] for a, b in pairs)
        print(
            f"{name:<28}{shared:.1%} of the exact candidates found, the best one for {first:.1%} of {len(pairs)} words"
        )


if __name__ == "__main__":
    main()
