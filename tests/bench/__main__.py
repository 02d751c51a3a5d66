"""`make bench`: this project beside a plain reference, in one run, in turn.

    make bench                                       # all works, texts made to GLUE's lengths
    make bench DATA=path/to/glue                     # with the texts of GLUE's SST-2 and MRPC
    make bench ARGS="--only general-128 ranks-2 --repeats 5"

Works on a CPU: general-128, intermediate-sst2, intermediate-mrpc, prediction-sst2, augment-sst2,
attention-memory-2048, ranks-2, student-inference-128, whole-task-sst2, whole-task-mrpc.
Works on a GPU: general-128, general-128-compiled, intermediate-sst2, intermediate-mrpc, prediction-sst2,
augment-sst2, student-inference-128.

Prints a table and writes runs/bench/bench.json, machine.json and bench.png. docs/benchmarks/speed.md explains it.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from pipeline.launch.child_process import keep_freed_memory
from pipeline.launch.worker import start_ranks

RUN = Path("runs/bench")
HEAD = f"{'work':<24}{'unit':<12}{'reference':>10}{'ours':>10}{'ratio':>8}  {'spread':<16}{'goal':>6}{'limit':>8}  agrees"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="WORK", help="these works [all]")
    parser.add_argument("--repeats", type=int, default=3, help="of each side, in turn [3]")
    parser.add_argument("--data", type=Path, help="holds SST-2/train.tsv and MRPC/train.tsv, as GLUE's")
    parser.add_argument("--tokenizer", type=Path, help="a directory [the packaged one]")
    parser.add_argument("--text", type=Path, help="a corpus for the general stage [packaged reviews]")
    o = parser.parse_args()
    for folder in ("SST-2", "MRPC") if o.data else ():
        if not (o.data / folder / "train.tsv").is_file():
            parser.error(
                f"DATA={o.data} holds no {folder}/train.tsv; leave DATA out to use texts of such lengths"
            )
    keep_freed_memory()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler announces itself
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what lies on the disk is removed
    device = start_ranks()
    from tests.bench.machine import Machine
    from tests.bench.place import Place

    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        works = works_of(Place(Path(directory), o.data, device, tokenizer=o.tokenizer, text=o.text))
        names = [work.name for work in works]
        unknown = sorted(set(o.only or ()) - set(names))
        if unknown or o.repeats < 1:
            parser.error(f"--only {' '.join(unknown)}: there are {', '.join(names)}; --repeats from 1")
        machine = Machine.measure(device)
        print(f"{machine}\n\n{HEAD}", flush=True)
        lines = []
        for work in works:
            if not o.only or work.name in o.only:
                lines.append(measure(work, machine, o.repeats))
                print(table_line(lines[-1]), flush=True)
    RUN.mkdir(parents=True, exist_ok=True)
    (RUN / "bench.json").write_text(json.dumps(lines, indent=1) + "\n")
    (RUN / "machine.json").write_text(json.dumps(machine.to_json(), indent=1) + "\n")
    draw(lines, machine, RUN / "bench.png")
    print(f"\nlimit: the share of what this machine allows for the work; {RUN}/bench.json, {RUN}/bench.png")
    return 0


def works_of(place) -> list:
    """The works, in the order of the table."""
    from stages.distillation.device import has_fast_bf16
    from tests.bench.attention import attention_memory
    from tests.bench.augmentation import augmentation
    from tests.bench.inference import student_inference
    from tests.bench.training import ranks, training
    from tests.bench.whole_task import whole_task

    if place.device.type == "cuda":
        general = partial(
            training,
            place,
            kind="general",
            task="",
            length=128,
            goal=3,
            plain_steps=30,
            our_steps=45,
            batch=256,
        )
        return [
            general("general-128"),
            general("general-128-compiled", compile="on"),
            training(
                place, "intermediate-sst2", "intermediate", "sst-2", 64, 3, plain_steps=90, our_steps=180
            ),
            training(
                place, "intermediate-mrpc", "intermediate", "mrpc", 128, 3, plain_steps=60, our_steps=110
            ),
            training(place, "prediction-sst2", "prediction", "sst-2", 64, 3, plain_steps=90, our_steps=180),
            augmentation(place),
            student_inference(place),
        ]
    bf16 = has_fast_bf16(place.device)
    return [
        training(place, "general-128", "general", "", 128, goal=2.3, plain_steps=2, our_steps=5),
        training(
            place, "intermediate-sst2", "intermediate", "sst-2", 64, goal=10, plain_steps=3, our_steps=100
        ),
        training(
            place, "intermediate-mrpc", "intermediate", "mrpc", 128, goal=6, plain_steps=2, our_steps=30
        ),
        training(place, "prediction-sst2", "prediction", "sst-2", 64, goal=25, plain_steps=3, our_steps=100),
        augmentation(place),
        attention_memory(),
        ranks(place),
        student_inference(place),
        whole_task(place, "whole-task-sst2", "sst-2", 64, count=40, goal=15 if bf16 else 6),
        whole_task(place, "whole-task-mrpc", "mrpc", 128, count=20, goal=15 if bf16 else 6),
    ]


def measure(work, machine, repeats: int) -> dict:
    """Both sides in turn; medians, and the spread of the ratio over the turns."""
    runs = {"reference": [], "ours": []}
    for repeat in range(-1, repeats):
        if sys.stderr.isatty():
            print(
                f"\r{work.name}: {max(repeat, 0)} of {repeats} repeats",
                end="\033[K\r",
                file=sys.stderr,
                flush=True,
            )
        for side, values in runs.items():
            value = getattr(work, side)(repeat)
            if repeat >= 0:
                values.append(value)
    reference, ours = (statistics.median(values) for values in runs.values())
    turns = [b / a for a, b in zip(*runs.values(), strict=True)]
    limit = work.limit(machine)
    return {
        "name": work.name, "unit": work.unit, "reference": reference, "ours": ours, "ratio": ours / reference,
        "limit_fraction": limit / ours if work.less_is_better else ours / limit, "agrees": bool(work.agrees()),
        "spread": [min(turns), max(turns)], "goal": work.goal, "less_is_better": work.less_is_better,
        "reference_runs": runs["reference"], "ours_runs": runs["ours"],
        "more": [dict(zip(("name", "unit", "reference", "ours"), line, strict=True)) for line in work.more()],
    }  # fmt: skip


def table_line(line: dict) -> str:
    """A work's line of the table, and one for each measure told beside it."""
    low, high = line["spread"]
    spread, goal = f"{low:.3g} to {high:.3g}", f"{line['goal']:g}" if line["goal"] else ""
    text = (
        f"{line['name']:<24}{line['unit']:<12}{line['reference']:>10.4g}{line['ours']:>10.4g}{line['ratio']:>8.3g}"
        f"  {spread:<16}{goal:>6}{line['limit_fraction']:>8.0%}  {'yes' if line['agrees'] else 'NO'}"
    )
    for more in line["more"]:
        ratio = more["ours"] / more["reference"]
        text += f"\n  {more['name']:<22}{more['unit']:<12}{more['reference']:>10.4g}{more['ours']:>10.4g}{ratio:>8.3g}"
    return text


def draw(lines: list[dict], machine, path: Path) -> None:
    """How many times better than the reference each work is, its goal, and what the machine allows; in reports' style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from pipeline.report.plots import STYLE
    from pipeline.report.templates import COLOURS

    goal = {"color": COLOURS["teacher"], "marker": "D", "markersize": 7, "linestyle": ""}
    repeats, allowed = ({"color": COLOURS["ink"], "linewidth": width} for width in (1.2, 3))
    pyplot.rcParams.update(STYLE)
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.5 * len(lines)), layout="constrained")
    for place, line in enumerate(lines):
        sign = -1 if line["less_is_better"] else 1
        times, low, high = (value**sign for value in (line["ratio"], *line["spread"]))
        axes.barh(place, times, color=COLOURS["student" if line["agrees"] else "baseline"], height=0.6)
        axes.plot([low, high], [place, place], **repeats)
        limit = times / line["limit_fraction"]
        axes.plot([limit] * 2, [place - 0.3, place + 0.3], **allowed)
        if line["goal"]:
            axes.plot(line["goal"] ** sign, place, **goal)
        axes.annotate(f"{times:.3g}", (1.04, place), va="center", color="white", fontweight="bold")
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(lines)), [line["name"] for line in lines])
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlabel("times the plain reference (of memory: times less)")
    marks = [
        pyplot.Line2D([], [], **repeats, label="lowest to highest repeat"),
        pyplot.Line2D([], [], **goal, label="goal"),
        pyplot.Line2D([], [], **allowed, label="what the machine allows"),
    ]
    axes.legend(handles=marks, loc="lower right")
    axes.set_title(f"tinydistil on {machine.name}, {machine.threads} threads", loc="left")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
