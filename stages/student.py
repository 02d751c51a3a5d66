"""A student of a task under any losses and methods: what recipes are made of.

It begins from random weights, from some of the teacher's layers, or from what an earlier stage made, and learns what
the recipe's lines say; `stages.methods` has what published methods do otherwise. The best on dev is kept: by the task's
metric, or by the loss where nothing trains its answers.
"""

from typing import Any

from stages.distillation.distillation import Distillation
from stages.distillation.losses import build
from stages.distillation.models import load_config
from stages.distillation.task_heads import set_first_bias
from stages.evaluation.scores import warn_if_constant
from stages.methods import build_method
from stages.teaching.student import choose_on_dev, distillation_score, save_student, task_score
from stages.training.job import Job
from stages.training.rows_of_task import rows_of, rows_to_train
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Train the student under the recipe's losses."""
    task, options = stage.task(), stage.training
    method = build_method(stage.options.get("method", "plain"), stage.options.get("reads", ()))
    student, tokenizer = method.begin(stage, task)
    set_first_bias(student, task.kind, task.splits["train"].labels)
    everything = stage.options.get("with_unlabelled", False)
    train, changes = method.rows(
        stage, task, rows_to_train(stage, task, tokenizer, options.max_length, everything)
    )
    dev = rows_of(stage, task, "dev", tokenizer, options.max_length)

    configs = (student.config, load_config(stage.model("teacher")), stage.options["layer_map"])
    losses = method.losses(stage.options["losses"])
    model = Distillation(student, [build(line, *configs) for line in losses], chosen=method.chosen)
    answers = model.student_capture.logits
    rows = {"train": train} if answers else {"train": train, "dev": dev}
    targets = method.targets(stage, task, model.teacher_capture, rows)
    evaluate = (
        task_score(stage, model, dev, task)
        if answers
        else distillation_score(stage, model, targets["dev"], dev)
    )
    step = method.step(model, options)
    evaluate = method.evaluation(model, evaluate)
    job = Job(
        stage, model, train, targets["train"], evaluate,
        set_progress=model.set_progress, batch_transform=changes, step=step,
    )  # fmt: skip
    state = job.run()
    model.student = method.finish(model)
    if answers:
        choose_on_dev(stage, model, dev, task)
        warn_if_constant(stage, task, state.best_score)
    method.examine(stage, task, model, dev)
    scores: dict[str, Any] = {"dev": state.best_score, "metric": task.selection if answers else "-loss"}
    scores |= {"steps": state.step} | ({"found": method.found} if method.found else {})
    stage.publish(save_student(job, tokenizer, scale=task.kind.scale), scores)
