"""The summary of a recipe's runs: each student over the seeds, its gain over the baseline, the effect of grid values."""

import statistics
from collections.abc import Callable
from pathlib import Path

from scipy import stats

from pipeline.config.recipe import Recipe
from pipeline.report.plots import write_students
from pipeline.report.run_record import RunRecord, read_run_record
from pipeline.report.tables import (
    Rows,
    agreement_cells,
    cost_cells,
    markdown_table,
    notes_of,
    terminal_table,
)
from pipeline.report.templates import metric_name

SIGNIFICANT = 0.05


def write_summary(recipe: Recipe, paths: list[Path], target: Path) -> str:
    """Summarize a recipe's runs for the terminal; write the same to `<target>.md`, and a picture to `<target>.png`.

    Args:
        paths: the paths of the runs, one for each seed.
    """
    runs = sorted((read_run_record(path) for path in paths), key=lambda run: run.options["seed"])

    def text(form: Callable[[Rows], str]) -> str:
        effects = _effects(recipe, runs) if recipe.grid_values else ""
        more = [_masked_lm(runs, form), _found(recipe, runs, form)]
        blocks = [_table(recipe, runs, form), *notes_of(runs), effects, *more, _verdict(recipe, runs)]
        return "\n\n".join(block for block in blocks if block)

    target.with_suffix(".md").write_text(text(markdown_table) + "\n", encoding="utf-8")
    groups = {
        option: {value: _scores_of(runs, names) for value, names in values.items()}
        for option, values in recipe.grid_values.items()
    } or {"": {name: scores(runs, name) for name in recipe.shown}}
    baseline = (recipe.baseline, statistics.mean(scores(runs, recipe.baseline))) if recipe.baseline else None
    write_students(groups, baseline, metric_name(runs[0].metrics[0]), recipe.name, target.with_suffix(".png"))
    return f"{text(terminal_table)}\n\nthis summary is in {target.with_suffix('.md')}, its picture in {target.with_suffix('.png')}"


def scores(runs: list[RunRecord], student: str) -> list[float]:
    """A student's metric in each run."""
    return [run.results[student].metric for run in runs]


def grid_means(recipe: Recipe, runs: list[RunRecord]) -> dict[str, dict[str, float]]:
    """Option of the grid -> value -> the mean metric of the students with that value, over all seeds."""
    return {
        option: {value: statistics.mean(_scores_of(runs, names)) for value, names in values.items() if names}
        for option, values in recipe.grid_values.items()
    }


def _scores_of(runs: list[RunRecord], students: list[str]) -> list[float]:
    return [score for name in students for score in scores(runs, name)]


def _table(recipe: Recipe, runs: list[RunRecord], form: Callable[[Rows], str]) -> str:
    """A table with a row for each model."""
    about, metric, rows = runs[0].about, runs[0].metrics[0], []
    seeds = ", ".join(str(run.options["seed"]) for run in runs)
    for name in ["teacher", *recipe.shown]:
        results = [run.results[name] for run in runs]
        row = {
            "student": f"**{name}**" if name == recipe.main else name,
            metric: _spread(scores(runs, name)),
        }
        if recipe.baseline:
            same = name in ("teacher", recipe.baseline)
            gain = "" if same else _spread(_gains(runs, name, recipe.baseline), signed=True)
            row[f"gain over {recipe.baseline}"] = gain
        rows.append(row | agreement_cells(results) | cost_cells(results))
    return (
        f"{recipe.name} on {runs[0].task.name}: {metric} on {about.split} ({about.rows:,} rows), "
        f"{f'seeds {seeds}, mean ± standard deviation' if len(runs) > 1 else f'seed {seeds}'}; "
        f"{runs[0].kind.constant_name} reaches "
        f"{about.constant:.4f}\n\n{form(rows)}"
    )


def _masked_lm(runs: list[RunRecord], form: Callable[[Rows], str]) -> str:
    """The accuracy of the runs' masked language models on held-out text, over the seeds."""
    found: dict[str, list[float]] = {}
    for stage in (stage for run in runs for stage in run.stages):
        if stage.stage_type in ("masked_lm", "pretrain") and "accuracy" in stage.scores:
            found.setdefault(stage.name, []).append(stage.scores["accuracy"])
    accuracy = "masked-LM accuracy on held-out text"
    rows = [{"stage": name, accuracy: _spread(values)} for name, values in found.items()]
    return form(rows) if rows else ""


def _found(recipe: Recipe, runs: list[RunRecord], form: Callable[[Rows], str]) -> str:
    """What the students' methods measured or fitted, mean and spread over the seeds: a table if they measured the same."""
    of_students: dict[str, dict[str, str]] = {}
    for name in recipe.students:
        found: dict[str, list[float]] = {}
        for stage in (stage for run in runs for stage in run.stages if stage.name == name):
            for what, value in stage.scores.get("found", {}).items():
                found.setdefault(what, []).append(value)
        if found:
            of_students[name] = {what: _spread(of) for what, of in found.items()}
    if not of_students:
        return ""
    title = "what the methods found" + ", over the seeds" * (len(runs) > 1)
    if len(of_students) > 1 and len({tuple(found) for found in of_students.values()}) == 1:
        return f"{title}\n\n" + form([{"student": name, **found} for name, found in of_students.items()])
    lines = [
        f"- {name}: " + ", ".join(f"{what} {value}" for what, value in found.items())
        for name, found in of_students.items()
    ]
    return "\n".join([title, "", *lines])


def _effects(recipe: Recipe, runs: list[RunRecord]) -> str:
    """The options of a grid, the one with the largest effect first."""
    means = grid_means(recipe, runs)
    effect = {option: max(of.values()) - min(of.values()) for option, of in means.items()}
    lines = ["effect of each option, the largest first: the mean of all students with each value", ""]
    for option in sorted(means, key=lambda option: -effect[option]):
        values = sorted(means[option].items(), key=lambda pair: -pair[1])
        lines.append(
            f"- {option}, {100 * effect[option]:.1f} points: "
            + ", ".join(f"{value} {mean:.4f}" for value, mean in values)
        )
    best = max(recipe.shown, key=lambda name: statistics.mean(scores(runs, name)))
    lines.append(f"- best student: {best}, {_spread(scores(runs, best))}")
    return "\n".join(lines)


def _verdict(recipe: Recipe, runs: list[RunRecord]) -> str:
    """Whether each student gains over the baseline, by a paired t-test over the seeds."""
    if not recipe.baseline:
        return ""
    if len(runs) < 2:
        return "one seed cannot tell a gain from chance: seeds='1 2 3' runs three"
    lines = []
    for name in recipe.shown:
        if name == recipe.baseline or (recipe.grid_values and name != recipe.main):
            continue
        gains = _gains(runs, name, recipe.baseline)
        p = float(stats.ttest_1samp(gains, 0).pvalue) if len(set(gains)) > 1 else 1.0
        gain = f"{name}: {100 * statistics.mean(gains):+.1f} points over {recipe.baseline}"
        word = "gain" if statistics.mean(gains) > 0 else "loss"
        verdict = f"a significant {word}" if p < SIGNIFICANT else "no significant gain"
        chance = f"p = {p:.2f}" if p >= 0.01 else "p < 0.01"
        least = stats.t.ppf(1 - SIGNIFICANT / 2, len(runs) - 1) * stats.sem(gains)
        seen = f"; significant from {100 * least:.1f} points on" if p >= SIGNIFICANT and least else ""
        lines.append(f"- {gain}, {verdict} (paired t-test over {len(runs)} seeds, {chance}{seen})")
    return "\n".join(lines)


def _gains(runs: list[RunRecord], name: str, baseline: str) -> list[float]:
    return [a - b for a, b in zip(scores(runs, name), scores(runs, baseline), strict=True)]


def _spread(values: list[float], signed: bool = False) -> str:
    """Mean and standard deviation: of counts with a decimal at most, of others with four."""
    counts = all(isinstance(value, int) for value in values)
    digits = ".4f" if not counts else ",.0f" if len({*values}) == 1 or min(values) >= 100 else ".1f"
    sign = "+" if signed else ""
    mean = f"{statistics.mean(values):{sign}{digits}}"
    return f"{mean} ± {statistics.stdev(values):{digits}}" if len(values) > 1 else mean
