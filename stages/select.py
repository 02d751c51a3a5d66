"""Selection over a grid: of stages that differ in some options, the one that is best on dev."""

import json
import shutil
from pathlib import Path

from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Take over the candidate with the highest dev score; ties go to the first."""
    table = {}
    for name in stage.options["candidates"]:
        finished = Path(stage.model(name).name).parent / "finished.json"
        table[name] = json.loads(finished.read_text(encoding="utf-8"))["scores"]
    best = max(table, key=lambda name: table[name]["dev"])
    source = Path(stage.model(best).name)

    def write(directory: Path) -> None:
        for path in source.iterdir():
            if path.name != "manifest.json":
                shutil.copy2(path, directory / path.name)

    scores = ", ".join(f"{name} {entry['dev']:.4f}" for name, entry in table.items())
    stage.log(f"{best} is best on dev of {scores}")
    stage.publish(write, table[best] | {"chosen": best, "candidates": table})
