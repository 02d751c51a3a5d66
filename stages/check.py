"""Before hours are spent: do vocabulary, labels, layers, heads and lengths fit, and what will it cost?

Tokenizes what the stages will read (the rows are cached for them), refuses what cannot work, and logs the tokens,
operations and truncated rows of every training stage.
"""

from dataclasses import asdict, replace
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np

from checkpoints.errors import UserError, about
from stages.distillation.models import load_classifier
from stages.evaluation.predict import predict
from stages.evaluation.scores import check_scale
from stages.tasks.kinds import Questions
from stages.tasks.task import Task, check_folds
from stages.tasks.task_rows import TaskRows
from stages.tasks.token_rows import TokenRows
from stages.teaching.cost import Cost, count, training_cost
from stages.teaching.given_models import Models, check_models, check_plan
from stages.training.cached_rows import corpus_rows, task_rows
from stages.training.options import StageToCheck
from stages.training.rows_of_task import rows_of, rows_to_train
from stages.training.stage import Stage
from stages.training.step import refuse_ranks, refuse_unsupported

ENOUGH_TOKENS = 10_000_000
"""Tokens of text up to which a general student's quality rose (docs/benchmarks/glue.md, "How much text")."""
SOME_ROWS = 200
"""Rows of dev on which a given teacher's scores are compared with the labels, and rows whose words are counted."""
MANY_TOKENS = 1.6
"""Tokens a word from which on a text may be in another language than its tokenizer: of a tokenizer for English, English
words take 1.2 (XQuAD) to 1.35 tokens (WNUT-17), Spanish ones 1.8, German ones 2.2."""
MANY_TRUNCATED = 0.1
"""If more than this fraction of the training rows is truncated, the log says so."""
LONG_WORD = 12
"""Characters a word above which spaces do not separate words, as in Chinese."""


def run(stage: Stage) -> None:
    """Check the given models, then rows and cost of every training stage of the run."""
    task = stage.task() if "task" in stage.inputs else None
    for note in task.notes if task else ():
        stage.log(note)
    student = stage.model("student") if "student" in stage.inputs else None
    models = check_models(stage.model("teacher"), student, stage.options, task, stage.log)
    if task and "weight" in stage.options and not task.labels:
        raise UserError(
            f"{stage.options['weight']!r} weighs answers by their labels, and the task has scores; take one",
            argument="answers.weight",
        )
    if task:
        check_folds(len(task.splits["train"]), stage.options.get("folds", 0))
    if task and stage.options.get("swaps_entities"):
        task.kind.entities([])  # raises where the task has none
    if task and models.knows(task) and not stage.options["accept_teacher"]:
        _check_scores(stage, task, models)
    plans = {name: StageToCheck(**plan) for name, plan in stage.options["stages"].items()}
    if not plans:
        raise UserError("there is nothing to train")
    costs = {}
    for name, plan in plans.items():
        own = stage.task(plan.data) if plan.learns_task and plan.data != "task" else task
        with about(name):
            costs[name] = _check_stage(stage, name, plan, models, own)
    if any(plan.variants for plan in plans.values()):
        stage.log("the augmentation itself is not counted")
    total = sum(cost.flops for cost in costs.values())
    stage.publish(
        lambda directory: (directory / "cost.txt").write_text(f"{total}\n"),
        {"flops": total, "stages": {name: asdict(cost) for name, cost in costs.items()}},
    )


def _check_scores(stage: Stage, task: Task, models: Models) -> None:
    """Compare the scores that a given teacher answers with the labels of some rows of dev."""
    if task.kind.problem_type != "regression":
        return
    dev = task.splits["dev"]
    some = dev.part(range(min(SOME_ROWS, len(dev))))
    length = stage.options["stages"]["tuning"]["max_length"] if "tuning" in stage.options["stages"] else 128
    rows = task_rows(stage, replace(task, splits={"some": some}), "some", models.preprocessor, length)
    teacher = load_classifier(stage.model("teacher"), capturing=False)
    check_scale(predict(teacher.eval().to(stage.device), rows, stage.device)[:, 0], np.array(some.labels))


def _check_stage(stage: Stage, name: str, plan: StageToCheck, models: Models, task: Task | None) -> Cost:
    """Check one training stage, tokenize its rows, and log what it will cost."""
    plan = replace(plan, ranks=stage.job.nproc)
    trained, reads_teacher, kind = check_plan(plan, models, task)
    counted = not stage.job.hostfile  # whose ranks are not known here
    if counted:
        most = ceil(plan.batch_size / plan.ranks)
        at_once = most if stage.job.micro_batch == "auto" else stage.job.micro_batch or most
        refuse_unsupported(kind, stage.job, plan.ranks, ceil(most / at_once))
    layers = models.teacher.num_hidden_layers if plan.reads_teacher else 0
    if isinstance(plan.layer_map, list) and max(plan.layer_map) < layers:
        stage.log(
            f"{name}: layer_map={plan.layer_map} leaves out the upper layers of the teacher's {layers}; "
            "give uniform, or a list that ends with the last one"
        )
    own = plan.trains == "student" and plan.losses is None and models.own  # a recipe's may begin otherwise
    rows = _rows(stage, plan, own or models.preprocessor, task)
    if counted:
        refuse_ranks(rows, plan.ranks)
    if name == "tuning" and models.knows(task):
        stage.log(f"{name}: the given teacher is tuned already, and is only evaluated")
        return Cost(0.0, 0.0)
    cost, line = training_cost(stage, plan, rows, task, trained, models.teacher if reads_teacher else None)
    stage.log(f"{name}: {line}")
    if name in ("tuning", "general") and (many := tokens_a_word(rows, models.preprocessor)) > MANY_TOKENS:
        stage.log(
            f"{name}: a word of the text takes {many:.1f} tokens; in the tokenizer's own language it would take 1.2 to 1.4: "
            "if they are of different languages, give a teacher and text of the same one"
        )
    if name == "tuning" and isinstance(rows, TokenRows) and rows.truncated > MANY_TRUNCATED * len(rows):
        stage.log(
            f"{name}: {rows.truncated:,} of {len(rows):,} rows have more than {plan.max_length} tokens and are truncated; "
            "raise max_length if their ends matter"
        )
    there = int(rows.lengths.sum())
    if name == "general" and there < ENOUGH_TOKENS and (not plan.tokens or there < plan.tokens):
        stage.log(
            f"{name}: the text has {count(there)} tokens; on STS-B students got better up to "
            f"{ENOUGH_TOKENS / 1e6:.0f} M (docs/benchmarks/glue.md): give more text"
        )
    return cost


def tokens_a_word(rows: TaskRows, tokenizer: Any) -> float:
    """Mean number of tokens per word in the first rows; 0 for rows without words, or of a script without spaces."""
    if not isinstance(rows, TokenRows):
        return 0.0
    special, tokens, words = set(tokenizer.all_special_ids), 0, list[str]()
    for start, end in pairwise(rows.offsets[: SOME_ROWS + 1].tolist()):
        ids = [token for token in rows.tokens[start:end].tolist() if token not in special]
        tokens += len(ids)
        words += tokenizer.decode(ids).split()
    characters = sum(map(len, words))
    return tokens / len(words) if words and characters <= LONG_WORD * len(words) else 0.0


def _rows(stage: Stage, plan: StageToCheck, preprocessor: Any, task: Task | None) -> TaskRows:
    """The rows that a stage will read, tokenized into the cache of the runs.

    Raises:
        ValueError: there are none, words whose labels are asked for are truncated, a question is too long, or an image
            cannot be read.
    """
    if not plan.learns_task or task is None:
        held_out = None if plan.mlm_probability is None else False
        return corpus_rows(
            stage, preprocessor, plan.max_length, plan.tokens, held_out, plan.data, plan.sentences
        )
    if task.token_level or task.kind.head == Questions.head or task.kind.pooling:
        for split in sorted(task.splits.keys() - {"train", "unlabelled"}):
            rows = task_rows(stage, task, split, preprocessor, plan.max_length, plan.data)
            if cut := rows.truncated:
                longest, length = "", plan.max_length
                while task.token_level and rows.truncated:
                    length *= 2
                    rows = task_rows(stage, task, split, preprocessor, length, plan.data)
                    longest = f"the longest has {rows.lengths.max()} tokens: "
                raise UserError(
                    f"{plan.max_length} tokens truncate {cut} rows of {split}, whose last words would have no "
                    f"prediction; {longest}raise it, and that of the other stages",
                    argument="max_length",
                )
    if task.kind.reads_images:  # so that a broken image of dev or test is reported now
        for split in sorted(task.splits.keys() - {"train", "unlabelled"}):
            rows_of(stage, task, split, preprocessor, plan.max_length)
    if plan.data != "task":
        return task_rows(stage, task, "train", preprocessor, plan.max_length, plan.data)
    return rows_to_train(stage, task, preprocessor, plan.max_length, plan.with_unlabelled)
