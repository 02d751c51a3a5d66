"""Time the models of a finished run one row at a time, and in batches of a size.

.venv/bin/python docs/recipes/speed_by_batch.py runs/sparse-ngrams-seed1 512
"""

import argparse
from pathlib import Path

import torch

from stages.distillation.models import load_classifier, load_tokenizer
from stages.evaluation.costs import speed
from stages.evaluation.results import busy_note
from stages.training.cached_rows import task_rows
from stages.training.stage import Stage


def main(run: Path, batch: int) -> None:
    """Print latency and throughput of each model on the rows that the run reports."""
    stage = Stage.open(run / "evaluate", torch.device("cpu"))
    task = stage.task()
    split = "test" if "test" in task.splits else "dev"
    models = {}
    for name in stage.options["models"]:
        source, length = stage.model(name), stage.options["max_length"][name]
        model = load_classifier(source, capturing=False).eval()
        models[name] = (model, task_rows(stage, task, split, load_tokenizer(source), length))
    costs = speed(models, batch=batch)
    first = costs["teacher"]
    print(f"{'model':<24}{'one row':>12}{'as fast as teacher':>22}{f'{batch} rows':>14}{'as fast':>12}")
    for name, cost in costs.items():
        alone = first.latency.p50 / cost.latency.p50
        together = cost.rows_per_second / first.rows_per_second
        rate = f"{cost.rows_per_second:,.0f}/s"
        print(f"{name:<24}{cost.latency.p50:>9.2f} ms{alone:>21.1f}x{rate:>14}{together:>11.1f}x")
    print(f"medians, {first.threads} thread(s)", busy_note(costs.values()), sep="; ")


def parse(texts: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line; ends the program where one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("batch", type=int, help="rows at once")
    given = parser.parse_args(texts)
    if not (given.run / "evaluate/finished.json").is_file():
        parser.error(f"{given.run} is not the directory of a finished run; give one, such as runs/cmow-seed1")
    if given.batch < 1:
        parser.error(f"{given.batch} rows at once: give a number from 1 on")
    return given


if __name__ == "__main__":
    main(**vars(parse()))
