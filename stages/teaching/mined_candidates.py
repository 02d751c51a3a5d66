"""Hard negatives: candidates of all training rows that a dual encoder ranks high for a question, and that are not right.

Axes in names: Q questions, P candidates, K mined ones of a question, T and U vectors of a question and a candidate, W width.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from checkpoints import store
from checkpoints.fingerprint import fingerprint, sha256_file
from stages.distillation.models import load_tokenizer
from stages.distillation.outputs import CaptureSpec
from stages.distillation.students.dual_encoder import best_matches
from stages.tasks.batches import EVALUATION_BATCH
from stages.tasks.task import Split, Task
from stages.teaching.live_teacher import task_teacher
from stages.teaching.shards import Fill, make_shards
from stages.training.cached_rows import is_there
from stages.training.stage import Stage, is_first_rank, wait_for

FORMAT = 1
SHARD_CANDIDATES = 4096
"""Candidates of a file: what a killed stage may rank again."""
BLOCK_QUESTIONS = 1024
"""Questions that are scored at once."""


def mined_candidates(stage: Stage, task: Task, given: str, count: int) -> Split:
    """Right pairs of the training rows; then each question with the candidates that are mined for it.

    Mined once, then read from the cache of all runs. Called on every rank.

    Args:
        stage: whose input `given` is the dual encoder that ranks.
        count: how many candidates are mined for a question, K. There are fewer if train has fewer that are not right for it.
    """
    train, length = task.splits["train"], stage.training.max_length
    assert train.text_b is not None
    right = [
        (a, b) for a, b, label in zip(train.text_a, train.text_b, train.labels, strict=True) if label == 1
    ]
    questions = list(dict.fromkeys(a for a, _ in right))
    candidates = sorted(set(train.text_b), key=lambda text: (len(text), text))
    miner = sha256_file(stage.artifact_dir(given) / store.MANIFEST)
    known = [right, candidates, miner, count, length, stage.job.precision, FORMAT]
    kept = stage.cache / f"mined-{fingerprint(known)[:20]}"
    if not is_there(stage, kept, "mined candidates are"):
        stage.log(f"{len(candidates):,} candidates are ranked for each of {len(questions):,} questions")
        best_QK = _ranked(stage, task, given, count, questions, candidates, right)
        if is_first_rank():
            with store.sealed(kept, shared=True) as directory:
                np.save(directory / "places.npy", best_QK)
    wait_for([kept / store.MANIFEST])
    best_QK = np.load(kept / "places.npy")
    mined = [
        (a, candidates[i]) for a, of in zip(questions, best_QK.tolist(), strict=True) for i in of if i >= 0
    ]
    first, second = zip(*right, *mined, strict=True)
    return Split(list(first), list(second), [1] * len(right) + [0] * len(mined))


def _ranked(
    stage: Stage,
    task: Task,
    given: str,
    count: int,
    questions: list[str],
    candidates: list[str],
    right: list[tuple[str, str]],
) -> np.ndarray:
    """(Q, K) places of the candidates that are best for each question, best first; -1 where there are no more."""
    number = {text: i for i, text in enumerate(questions)}
    place = {text: i for i, text in enumerate(candidates)}
    right_R2 = np.array([(number[a], place[b]) for a, b in right])

    def start() -> Fill:
        model = task_teacher(stage, task, CaptureSpec(logits=True), given).model
        tokenizer, length = load_tokenizer(stage.model(given)), stage.training.max_length
        of_questions = text_vectors(model, tokenizer, questions, length)

        def fill(i: int, directory: Path) -> None:
            first, block = i * SHARD_CANDIDATES, candidates[i * SHARD_CANDIDATES : (i + 1) * SHARD_CANDIDATES]
            vectors, parts = text_vectors(model, tokenizer, block, length), []
            for start in range(0, len(questions), BLOCK_QUESTIONS):
                scores_QP = all_scores(of_questions[start : start + BLOCK_QUESTIONS], vectors)
                own_R2 = right_R2 - (start, first)
                own_R2 = own_R2[((own_R2 >= 0) & (own_R2 < scores_QP.shape)).all(1)]
                scores_QP[tuple(own_R2.T)] = -np.inf
                places_P = np.arange(first, first + len(block))
                parts.append(_best(scores_QP, np.broadcast_to(places_P, scores_QP.shape), count))
            scores, places = (np.concatenate(of) for of in zip(*parts, strict=True))
            np.savez(directory / "best.npz", scores=scores, places=places)

        return fill

    shards = stage.directory / "teacher" / f"mined-{count}-{stage.job.precision}"
    paths = make_shards(stage, shards, -(-len(candidates) // SHARD_CANDIDATES), "ranking", start)
    best: dict[str, np.ndarray] = {}
    for path in paths:
        part = dict(np.load(path / "best.npz"))
        both = {name: np.concatenate([best.get(name, of[:, :0]), of], 1) for name, of in part.items()}
        best["scores"], best["places"] = _best(both["scores"], both["places"], count)
    return np.where(best["scores"] == -np.inf, -1, best["places"])


def _best(scores_QP: np.ndarray, places_QP: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest scores of each question and their places, best first; of equal scores the first is first."""
    order_QK = np.argsort(-scores_QP, 1, kind="stable")[:, :count]
    return np.take_along_axis(scores_QP, order_QK, 1), np.take_along_axis(places_QP, order_QK, 1)


def text_vectors(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> Tensor:
    """(N, T, W) in fp32: what a dual encoder in eval mode says of texts, each alone; 0 where a text has fewer vectors."""
    tokenizer = copy.deepcopy(tokenizer)  # whose own settings truncation and padding would become
    found: list[Tensor] = []
    with torch.no_grad():
        for i in range(0, len(texts), EVALUATION_BATCH):
            read = tokenizer(
                list(texts[i : i + EVALUATION_BATCH]), truncation=True, max_length=max_length, padding=True,
                return_token_type_ids=False, return_tensors="pt",
            ).to(model.device)  # fmt: skip
            found += model(**read).queries[:, -1].float().clone()  # not a view of all layers
    return pad_sequence(found, batch_first=True)


def all_scores(questions_QTW: Tensor, candidates_PUW: Tensor) -> np.ndarray:
    """(Q, P) the score of every candidate for every question."""
    if questions_QTW.shape[1] == candidates_PUW.shape[1] == 1:  # vectors of whole texts: one product
        return (questions_QTW[:, 0] @ candidates_PUW[:, 0].T).cpu().numpy()
    of_each = [best_matches(x_TW @ candidates_PUW.transpose(1, 2), candidates_PUW) for x_TW in questions_QTW]
    return torch.stack(of_each).cpu().numpy()
