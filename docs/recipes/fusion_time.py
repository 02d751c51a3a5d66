"""Time the fusion of an image and a caption in each model of a finished run of `dcd`; what the encoders give is known.

.venv/bin/python docs/recipes/fusion_time.py runs/dcd-seed1
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from stages.distillation.models import load_classifier, load_preprocessor
from stages.training.rows_of_task import rows_of
from stages.training.stage import Stage

WARM, IMAGES = 3, 100


def main(run: Path) -> None:
    """Print the median time a pair of each model, for one image and all captions of the split at once."""
    stage = Stage.open(run / "evaluate", torch.device("cpu"))
    task = stage.task()
    split = "test" if "test" in task.splits else "dev"
    models, known = {}, {}
    with torch.inference_mode():
        for name in stage.options["models"]:
            source = stage.model(name)
            model = load_classifier(source, task.kind, capturing=False).eval()
            rows = rows_of(stage, task, split, load_preprocessor(source, task.kind), 0)
            first = np.unique(rows.images, return_index=True)[1][:IMAGES]
            pixels = rows.collate(first, np.ones(len(first), np.float32)).inputs["pixel_values"]
            encoders = model.base_model.encoders
            models[name], known[name] = model, (encoders.see(pixels), encoders.read(**rows.read), rows.read)
        times = {name: [] for name in models}
        for image in range(len(first)):
            for name, model in models.items():
                images, texts, read = known[name]
                began = time.perf_counter()
                model(
                    image_states=images[image : image + 1],
                    text_states=texts,
                    attention_mask=read["attention_mask"],
                    candidates=torch.arange(len(texts))[None],
                )
                times[name].append((time.perf_counter() - began) / len(texts))
    medians = {name: 1e6 * float(np.median(of[WARM:])) for name, of in times.items()}
    print(f"{'model':<24}{'fusion layers':>15}{'a pair':>12}{'as fast as teacher':>22}")
    for name, median in medians.items():
        layers = models[name].config.num_hidden_layers
        print(f"{name:<24}{layers:>15}{median:>9.1f} µs{medians['teacher'] / median:>21.2f}x")
    print(
        f"medians over {len(first) - WARM} images with {len(texts)} captions each, {torch.get_num_threads()} thread(s)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a finished run")
    given = parser.parse_args()
    if not (given.run / "evaluate/finished.json").is_file():
        parser.error(f"{given.run} is not the directory of a finished run; give one, such as runs/dcd-seed1")
    main(given.run)
