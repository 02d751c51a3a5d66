"""What a recipe's runs come to: each student over the seeds, its gain over the baseline, and what of a grid mattered."""

import statistics
from pathlib import Path

from scipy import stats

from pipeline.config.recipe import Recipe
from pipeline.report.png_plots import write_students
from pipeline.report.run_record import RunRecord, read_run_record
from pipeline.report.tables import markdown_table

SIGNIFICANT = 0.05


def write_summary(recipe: Recipe, paths: list[Path], target: Path) -> str:
    """The summary of a recipe's runs; it is also written to `<target>.md`, with a picture beside it.

    Args:
        recipe: whose students they are.
        paths: of the runs, one for each seed.
        target: path without its ending.
    """
    runs = [read_run_record(path) for path in paths]
    blocks = [_table(recipe, runs)]
    if recipe.grid_values:
        blocks.append(_what_mattered(recipe, runs))
    blocks += [_masked_words(runs), _verdict(recipe, runs)]
    text = "\n\n".join(block for block in blocks if block)
    target.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    write_students(recipe, runs, target.with_suffix(".png"))
    return f"{text}\n\nthe same is in {target.with_suffix('.md')}, and drawn in {target.with_suffix('.png')}"


def scores(runs: list[RunRecord], student: str) -> list[float]:
    """A student's metric in each run."""
    return [run.results[student]["metric"] for run in runs]


def level_means(recipe: Recipe, runs: list[RunRecord]) -> dict[str, dict[str, float]]:
    """Factor -> level -> the mean metric of its students over all seeds."""
    return {
        factor: {
            level: _mean(scores(runs, name) for name in names) for level, names in levels.items() if names
        }
        for factor, levels in recipe.grid_values.items()
    }


def _table(recipe: Recipe, runs: list[RunRecord]) -> str:
    """A Markdown table, a line for each model."""
    about, metric, seeds = runs[0].about, runs[0].metrics[0], len(runs)
    loyal = ["same label", "probability"] if about["labels"] else ["Pearson to the teacher"]
    head = ["student", metric, *([f"gain over {recipe.baseline}"] if recipe.baseline else []), *loyal]
    head += ["parameters", "MFLOP", "latency", "memory"]
    rows = []
    for name in ["teacher", *recipe.shown]:
        entries = [run.results[name] for run in runs]
        cells = [f"**{name}**" if name == recipe.main else name, _spread(scores(runs, name), 4)]
        if recipe.baseline:
            same = name in ("teacher", recipe.baseline)
            cells.append("" if same else _spread(_gains(runs, name, recipe.baseline), 4, signed=True))
        if name == "teacher":
            cells += [""] * len(loyal)
        elif about["labels"]:
            cells += [
                f"{_mean([[e[key] for e in entries]]):.1%}"
                for key in ("label_loyalty", "probability_loyalty")
            ]
        else:
            cells.append(f"{_mean([[e['pearson_to_teacher'] for e in entries]]):.3f}")
        memory = entries[0]["peak_bytes"]
        latency = statistics.median(e["latency_ms"] for e in entries)
        cells += [
            f"{entries[0]['parameters'] / 1e6:.1f} M",
            f"{entries[0]['flops'] / 1e6:,.0f}",
            f"{latency:.2f} ms",
        ]
        rows.append([*cells, f"{memory / 1e6:.0f} MB" if memory else "-"])
    return (
        f"{recipe.name} on {runs[0].task['name']}: {metric} on {about['split']} ({about['rows']:,} rows), "
        f"{seeds} seed{'s' if seeds > 1 else ''}, mean ± standard deviation; a constant answer reaches "
        f"{about['constant']:.4f}\n\n{markdown_table(head, rows)}"
    )


def _masked_words(runs: list[RunRecord]) -> str:
    """What the run's masked language models guess of held-out text, each over the seeds."""
    shares: dict[str, list[float]] = {}
    for stage in (stage for run in runs for stage in run.stages):
        if stage.spec["stage_type"] in ("masked_lm", "pretrain") and "accuracy" in stage.finished["scores"]:
            shares.setdefault(stage.name, []).append(stage.finished["scores"]["accuracy"])
    rows = [[name, _spread(values, 4)] for name, values in shares.items()]
    return markdown_table(["stage", "held-out masked pieces guessed right"], rows) if rows else ""


def _what_mattered(recipe: Recipe, runs: list[RunRecord]) -> str:
    """The factors of a grid, the one whose levels differ most first."""
    means = level_means(recipe, runs)
    spread = {factor: max(of.values()) - min(of.values()) for factor, of in means.items()}
    lines = ["what mattered, most first: the mean of all students at each level", ""]
    for factor in sorted(means, key=lambda factor: -spread[factor]):
        levels = sorted(means[factor].items(), key=lambda pair: -pair[1])
        lines.append(
            f"- {factor}, {100 * spread[factor]:.1f} points: "
            + ", ".join(f"{level} {value:.4f}" for level, value in levels)
        )
    best = max(recipe.shown, key=lambda name: statistics.mean(scores(runs, name)))
    lines.append(f"- best: {best}, {_spread(scores(runs, best), 4)}")
    return "\n".join(lines)


def _verdict(recipe: Recipe, runs: list[RunRecord]) -> str:
    """Whether the students that are not the baseline gain anything over it, seed by seed."""
    if not recipe.baseline:
        return ""
    if len(runs) < 2:
        return "one seed tells no gain from luck: seeds='1 2 3' makes three"
    lines = []
    for name in recipe.shown:
        if name == recipe.baseline or (recipe.grid_values and name != recipe.main):
            continue
        gains = _gains(runs, name, recipe.baseline)
        p = float(stats.ttest_1samp(gains, 0).pvalue) if len(set(gains)) > 1 else 1.0
        gain = f"{name}: {100 * statistics.mean(gains):+.1f} points over {recipe.baseline}"
        word = "gain" if statistics.mean(gains) > 0 else "loss"
        verdict = f"a significant {word}" if p < SIGNIFICANT else "no significant gain"
        lines.append(f"- {gain}, {verdict} (paired t-test over {len(runs)} seeds, p = {p:.2f})")
    return "\n".join(lines)


def _gains(runs: list[RunRecord], name: str, baseline: str) -> list[float]:
    return [a - b for a, b in zip(scores(runs, name), scores(runs, baseline), strict=True)]


def _spread(values: list[float], digits: int, signed: bool = False) -> str:
    sign = "+" if signed else ""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _mean(groups) -> float:
    return statistics.mean(value for group in groups for value in group)
