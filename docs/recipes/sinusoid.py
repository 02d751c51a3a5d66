"""The sinusoid of Continuation-KD (arXiv 2212.05998), by the losses and schedules of the recipe `continuation-kd`.

    .venv/bin/python docs/recipes/sinusoid.py        # three minutes; prints the table, draws sinusoid.png beside this file

3,000 points of a noisy sinusoid; the teacher is an MLP of two layers of 128, the students have two
of 8 (`--width`). What the paper leaves open (periods, noise, students, steps) is ours.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import nn

from pipeline.report.plots import STYLE, series_colours
from pipeline.report.templates import COLOURS
from stages.distillation.losses import build
from stages.distillation.losses.base import Loss
from stages.distillation.outputs import ModelOutputs
from stages.tasks.batches import Batch

RECIPE = Path(__file__).parents[2] / "pipeline" / "config" / "recipes" / "continuation-kd.yaml"
POINTS, BATCH, RATE, MARGIN = 3000, 64, 3e-3, 0.02
PHASES = (0.1, 0.4, 0.7, 1.0)  # of the training, at which the picture shows the student of Continuation-KD
SPAN = 3 * np.pi
CLEAN = np.linspace(-SPAN, SPAN, 1001, dtype=np.float32)


def sinusoid(x: np.ndarray) -> np.ndarray:
    """Three periods."""
    return np.sin(x)


def mlp(width: int, seed: int) -> nn.Module:
    """One number in, one out, two hidden layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    )


def lines() -> dict[str, list]:
    """The losses of each student. A score has no temperature, so plain KD is half and half; and it is small, so is m."""
    students = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["students"]
    found = {name: student["losses"] for name, student in students.items()}
    found["continuation-kd"][1]["continuation"]["margin"] = MARGIN
    return found | {"kd": [{"gold_labels": {"weight": 0.5}}, {"soft_labels": {"weight": 0.5}}]}


def train(
    model: nn.Module, losses: list[Loss], x: torch.Tensor, y: torch.Tensor, teacher: nn.Module | None,
    epochs: int, seed: int,
) -> list[np.ndarray]:  # fmt: skip
    """Adam, the rate falling to 0; returns what the model answers on CLEAN at each of PHASES."""
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    random = torch.Generator().manual_seed(seed)
    steps, step, shown = epochs * (len(x) // BATCH), 0, []
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=random)[: len(x) // BATCH * BATCH].split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / steps)
            ones = torch.ones(BATCH)
            batch = Batch({"x": rows[:, None]}, y[rows], ones, rows)
            with torch.no_grad():
                target = None if teacher is None else ModelOutputs(teacher(x[rows]))
            outputs, total = ModelOutputs(model(x[rows])), torch.zeros(())
            for loss in losses:
                loss.progress = step / steps
                total = (
                    total + sum(t.weight * t.sum for t in loss.terms(outputs, target, batch).values()) / BATCH
                )
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            step += 1
            if step in [round(phase * steps) for phase in PHASES]:
                shown.append(answers(model))
    return shown


@torch.no_grad()
def answers(model: nn.Module) -> np.ndarray:
    """On CLEAN."""
    return model(torch.from_numpy(CLEAN)[:, None])[:, 0].numpy()


def error(answered: np.ndarray) -> float:
    """Root mean squared distance from the sinusoid without noise."""
    return float(np.sqrt(np.mean((answered - sinusoid(CLEAN)) ** 2)))


def measure(seeds: list[int], epochs: int, noise: float = 0.5, width: int = 8):
    """Errors of all, by name, a seed after the other; and of the last seed the data and what the picture shows."""
    errors: dict[str, list[float]] = {}
    for seed in seeds:
        random = np.random.default_rng(seed)
        x = random.uniform(-SPAN, SPAN, POINTS).astype(np.float32)
        y = (sinusoid(x) + random.normal(0, noise, POINTS)).astype(np.float32)
        data = torch.from_numpy(x)[:, None], torch.from_numpy(y)
        teacher = mlp(128, seed)
        train(teacher, [build("gold_labels", None, None)], *data, None, epochs, seed)
        made = {"teacher": [answers(teacher)]}
        for name, losses in lines().items():
            student = mlp(width, seed)
            made[name] = train(student, [build(o, None, None) for o in losses], *data, teacher, epochs, seed)
        for name, shown in made.items():
            errors.setdefault(name, []).append(error(shown[-1]))
    return errors, (x, y), made


def draw(points: tuple[np.ndarray, np.ndarray], made: dict[str, list[np.ndarray]], target: Path) -> None:
    """Left the students at their end; right the student of Continuation-KD on its way, over the teacher turned up so far."""
    colours = series_colours([*dict.fromkeys(["continuation-kd", *made])])
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        left.scatter(*points, s=2, color=COLOURS["line"])
        left.plot(CLEAN, sinusoid(CLEAN), color=COLOURS["ink"], linewidth=1, label="without noise")
        for name, shown in made.items():
            left.plot(CLEAN, shown[-1], color=COLOURS[colours[name]], label=name)
        left.set_title("at the end")
        for phase, shown in zip(PHASES, made["continuation-kd"], strict=True):
            alpha = 0.25 + 0.75 * phase
            label = f"after {phase:.0%} of the steps"
            right.plot(CLEAN, shown, color=COLOURS["student"], alpha=alpha, label=label)
            right.plot(
                CLEAN,
                phase * made["teacher"][0],
                color=COLOURS["teacher"],
                alpha=alpha,
                linestyle=":",
                linewidth=1,
            )
        right.set_title("Continuation-KD on its way (dotted: the teacher so far)")
        for axes in (left, right):
            axes.legend(fontsize=8, ncols=2)
            axes.set_ylim(-2.2, 2.2)
        figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--width", type=int, default=8)
    o = parser.parse_args()
    torch.set_num_threads(1)  # these are tiny products
    errors, points, made = measure(o.seeds, o.epochs, o.noise, o.width)
    for name, values in errors.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:<18}{statistics.mean(values):.4f} ± {spread:.4f}")
    draw(points, made, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
