"""What prompts of other tasks are worth, over the finished runs of the recipe panda on several target tasks.

    python docs/recipes/prompt_transfer.py panda panda-motors panda-sport

For each pair of source and target: how alike their prompts are, and the gains of prompt transfer and of PANDA over a
fresh prompt, in points; means over the seeds. Then Spearman's rank correlation of likeness and gains over all pairs.
"""

import json
import statistics
import sys
from pathlib import Path

from scipy import stats
from tabulate import tabulate

LIKENESS = ("similarity", "cosine of mean prompt tokens")
GAINS = ("transfer", "panda")


def pairs_of(run: str) -> list[dict]:
    """A row for each source of a target: name of the run and the source, likeness and gains, means over the seeds."""
    seeds = [path.parent for path in sorted(Path("runs").glob(f"{run}-seed*/results.json"))]
    if not seeds:
        sys.exit(
            f"there is no finished run {run}-seed1 under runs/; make it with the recipe panda, or name another"
        )
    scores = [{name: of["metric"] for name, of in read(seed / "results.json").items()} for seed in seeds]
    rows = []
    for source in [name.removeprefix("panda-") for name in scores[0] if name.startswith("panda-")]:
        found = [read(seed / f"panda-{source}" / "finished.json")["scores"]["found"] for seed in seeds]
        row = {"target": run, "source": source} | {what: mean(of[what] for of in found) for what in LIKENESS}
        rows.append(
            row | {of: mean(100 * (s[f"{of}-{source}"] - s["fresh"]) for s in scores) for of in GAINS}
        )
    return rows


def read(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def mean(values) -> float:
    """Of an iterable."""
    return statistics.mean(list(values))


def main(runs: list[str]) -> None:
    """Print the pairs, the targets and the correlations."""
    pairs = [row for run in runs for row in pairs_of(run)]
    print(tabulate(pairs, headers="keys", floatfmt="+.2f", tablefmt="pipe"), "\n")
    for run in runs:
        of_run = [row for row in pairs if row["target"] == run]
        for gain in GAINS:
            best = max(of_run, key=lambda row: row[gain])
            average = mean(row[gain] for row in of_run)
            print(
                f"{run}: {gain} {average:+.1f} points over sources, {best[gain]:+.1f} with the best ({best['source']})"
            )
    if len(pairs) < 3:
        print(f"{len(pairs)} pairs are too few for a rank correlation; name runs on more targets")
        return
    for likeness in LIKENESS:
        for gain in GAINS:
            found = stats.spearmanr([row[likeness] for row in pairs], [row[gain] for row in pairs])
            print(
                f"{likeness} and gain of {gain}: rho = {found.statistic:+.2f}, p = {found.pvalue:.2f}, {len(pairs)} pairs"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
