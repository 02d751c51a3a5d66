"""Records the sha256 of all that is learned or decided, by every command, preset and recipe, on tiny models.

    python -m tests.same_weights record before.json --root ../other    # with the code of another checkout [this one]
    python -m tests.same_weights compare before.json after.json        # what differs, is missing or new; 1 if any

For a change that may move nothing that is learned. The same machine and packages give the same record. `--root` needs
a checkout that knows the options below: a record of former code is best made with the former copy of this file.
"""

import argparse
import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.config.recipe import UNUSED
from tests.forked_commands import ForkedPopen
from tests.stand_ins import make_given

ROOT = Path(__file__).resolve().parents[1]
MODULE = "pipeline"
ALL = "run={} reuse=false job.checkpoint_seconds=1000 job.precision=fp32"
GROUPS = ("tuning", "general", "masked_lm", "intermediate", "prediction", "finetuning")
TINY = "teacher=teacher corpus=corpus.txt finetuning.grid= augmentation.variants=3 general.tokens=800 masked_lm.tokens=800 " + " ".join((
    "architecture.layers=2 architecture.width=8 architecture.feed_forward=16 architecture.heads=2",
    *(f"{group}.epochs=2 {group}.batch_size=8 {group}.max_length=32" for group in GROUPS),
))  # fmt: skip
OF_RECIPES = " ".join(option for option in TINY.split() if option.split("=")[0].split(".")[0] not in UNUSED)
WIDTH = "base.student.width=24 base.student.feed_forward=48"  # of the stand-in teacher
SIZES = "teacher=packaged corpus=packaged architecture.layers=3 architecture.width=48 architecture.feed_forward=96"
TABLE = "task=tiny data=data text_columns=text label_column=label"
OWN = f"{TINY} {TABLE}"

MAKE = {
    # Recipes and presets as they are shipped, but for their seeds; what comes in packages are tiny stand-ins.
    "which-student": "recipe name=which-student seeds=1",
    "compact-biomedical": "recipe name=compact-biomedical seeds=1 rows=32",
    "knowledge": "recipe name=knowledge seeds=2",
    "which-system": "recipe name=which-system seeds=1 students.grain-50.method.grain.embedding_rank=8",
    "which-student-tags": "recipe name=which-student-tags seeds=1",
    "framework": f"recipe name=framework seeds=1 {WIDTH}",
    "continuation-kd": "recipe name=continuation-kd seeds=1",
    "panda": "recipe name=panda seeds=1",
    "sparse-ngrams": "recipe name=sparse-ngrams seeds=1",
    "cerberus": "recipe name=cerberus seeds=1",
    "teaching-assistants": "recipe name=teaching-assistants seeds=1",
    "cmow": "recipe name=cmow seeds=1",
    "cmow-pairs": "recipe name=cmow-pairs seeds=1 data=STS-B",
    "ackd": "recipe name=ackd seeds=1 rows=64 tuning.epochs=2 base.training.epochs=2",
    "dcd": "recipe name=dcd seeds=1 rows=48 tuning.epochs=1 base.training.epochs=1",
    "deit": "recipe name=deit seeds=1 rows=64 tuning.epochs=2 base.training.epochs=2",
    "disco": "recipe name=disco seeds=1 data=STS-B corpus=corpus.txt student= base.student.init=random base.student.width=24",
    "hire": "recipe name=hire seeds=1 tuning.epochs=2 base.training.epochs=2",
    "grain": "recipe name=grain seeds=1 base.method.grain.embedding_rank=8 students.stock-50.method.grain.density=0.7",
    "oracle-teacher": "recipe name=oracle-teacher seeds=1 rows=32 tuning.epochs=1 base.training.epochs=1",
    "lead": "recipe name=lead seeds=1 tuning.epochs=1 base.training.epochs=1",
    "lead-candidates": "recipe name=lead-candidates seeds=1 tuning.epochs=1 base.training.epochs=1",
    "shape": "recipe name=shape seeds=1",
    "ablations": "recipe name=ablations seeds=1 rows=32 base.training.epochs=1",
    "best-practice": f"recipe name=best-practice seeds=1 rows=60 {WIDTH}",
    "demo": "demo preset=demo seed=1",
    "demo-full": "demo preset=demo-full seed=1",
    "tinybert4": f"task-distill preset=tinybert4 {SIZES} task=mnli data=MNLI augmentation.variants=5",
    "tinybert6": f"task-distill preset=tinybert6 {SIZES} task=sts-b data=STS-B baselines=true "
    "augmentation.repredict=true intermediate.epochs=4",
    # Options beside those of the presets, ranks, ZeRO, other kinds of teachers and data.
    "preset-layers": "task-distill preset=layers task=sts-b data=STS-B architecture.vocabulary=0 intermediate.epochs=1",
    "preset-compact": "general-distill preset=compact general.layer_map=last architecture.width=24 architecture.heads=12 "
    "architecture.feed_forward=48 architecture.vocabulary=0",
    "glue": f"glue {TINY} task=sts-b data=. student=teacher-layers",
    "general": f"general-distill {TINY} general.projection=shared job.zero=1 job.nproc=2",
    "augment": f"augment {OWN} augmentation.vectors=vectors.txt augmentation.masks_per_pass=2 job.nproc=2",
    "given": f"task-distill {OWN} augment=true augmentation.masked_lm=masked augmentation.vectors=none student=student "
    "baselines=true intermediate.max_length=24",
    "layers": f"task-distill {OWN} student=teacher-layers intermediate.layer_map=[1,3] baselines=true job.zero=1 "
    "job.nproc=2 job.micro_batch=2 finetuning.evaluate_every=2 finetuning.patience=2",
    "zero2": f"task-distill {OWN} teacher=roberta general.layer_map=last job.zero=2 job.nproc=2",
    "zero3": f"task-distill {OWN} teacher=electra prediction.temperature=2 job.zero=3 job.micro_batch=3",
    "zero3-ranks": f"task-distill {OWN} teacher=distilbert augment=true job.zero=3 job.nproc=2",
    "scores": f"task-distill {TINY} task=scores.yaml job.cache_gb=0 intermediate.attention_weight=0 "
    "prediction.targets=teacher prediction.schedule=constant",
    "bf16": f"task-distill {OWN} job.precision=bf16 prediction.targets=gold",
    "fp16": f"general-distill {TINY} job.precision=fp16",
    "own": f"recipe name=own.yaml {OF_RECIPES} {TABLE} job.zero=2 job.nproc=2 job.micro_batch=2",
    "own-words": f"recipe name=own-words.yaml {OF_RECIPES} task=words data=words job.nproc=2",
}
"""Name of a run -> the command that makes it; ALL follows its first word."""

SHOW = {
    "export": "export run=demo to=exports/demo",
    "export-tagger": "export run=which-student-tags-seed1 to=exports/tagger",
    "answers-to-text": "predict run=tinybert4 'text=a warm film' 'text_b=the movie is great'",
    "answers-to-words": "predict run=own-words-seed3 'text=a good film'",
    "answers-to-file": "predict run=scores file=scores/dev.csv text_columns=one,other",
    "report": "report run=given",
    "report-of-recipe": "report run=framework-seed1",
    "evaluate": "evaluate run=demo",
    "compare": "compare 'runs=zero2 zero3'",
    "pareto": "pareto",
    "recipes": "recipes",
    "doctor": "doctor run=given",
}
"""What is done with runs. Of those named answers the output is recorded; the others must not fail."""

LATER = {"answers-of-export": "predict model=exports/demo file=runs/demo/test_predictions.csv"}
"""What is done with exports."""

COSTS = "costs parameters bytes flops seconds latency_ms latency batch rows_per_second lengths threads peak_bytes".split()
"""Keys of JSON files under which there are times, memory and sizes."""

SCORES = {"finished.json": "scores"}
"""JSON file -> the part of it that is recorded; of others all is."""

RENAMED: dict[str, str] = {}
"""Name of a run, stage or file -> its name in records, where it had another when they began."""


def whole(path: Path) -> bytes:
    """The file as it is."""
    return path.read_bytes()


def columns(path: Path) -> bytes:
    """The columns of an Arrow stream, without their names."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        return json.dumps(list(pyarrow.ipc.open_stream(file).read_all().to_pydict().values())).encode()


def rows(path: Path) -> bytes:
    """The rows of a table, without its head."""
    with open(path, newline="", encoding="utf-8") as file:
        return json.dumps(list(csv.reader(file))[1:]).encode()


def members(path: Path) -> bytes:
    """The files in a zip file, without their times."""
    with zipfile.ZipFile(path) as archive:
        return b"".join(name.encode() + archive.read(name) for name in archive.namelist())


def scores(path: Path) -> bytes:
    """The numbers of a JSON file that are no costs, by size, whatever their keys."""
    value = json.loads(path.read_text(encoding="utf-8"))
    found = sorted(numbers(value[SCORES[path.name]] if path.name in SCORES else value))
    return json.dumps(found).encode() if found else b""


def numbers(value: object) -> Iterator[float]:
    """The numbers in a JSON value, but for those under COSTS."""
    if isinstance(value, dict):
        yield from (n for key, inner in value.items() if key not in COSTS for n in numbers(inner))
    elif isinstance(value, list):
        yield from (n for inner in value for n in numbers(inner))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


RECORDED: dict[str, Callable[[Path], bytes]] = {
    "runs/*/*/model/*.safetensors": whole,
    "runs/*/*/model/*.arrow": columns,
    "runs/*/*/model/*.npy": whole,
    "runs/*/*/finished.json": scores,
    "runs/*/results.json": scores,
    "runs/*/*_predictions.csv": rows,
    "runs/*/*.zip": members,
    "runs/.cache/*/*.bin": whole,
    "runs/.cache/*/*.npy": whole,
    "exports/**/*.safetensors": whole,
    "exports/**/*.onnx": whole,
    "answers*": whole,
}
"""Where artefacts lie -> what of them is hashed."""


def record(
    place: Path, names: Iterable[str] = (), root: Path = ROOT, seed: int = 0, jobs: int = 2
) -> dict[str, str]:
    """Run all commands, or those that make the runs `names`, in an empty directory: run/stage/file -> sha256.

    Args:
        place: the directory.
        names: keys of MAKE.
        root: the checkout whose code is run.
        seed: of the weights of the models that are given.
        jobs: commands at once.
    """
    make_given(place, seed)
    popen = ForkedPopen if root.resolve() == ROOT else subprocess.Popen
    fixed = {"PYTHONPATH": str(root.resolve()), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(name: str, command: list[str]) -> None:
        start = time.monotonic()
        process = popen(
            [sys.executable, "-m", MODULE, *command], cwd=place, env=os.environ | fixed, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        output, errors = process.communicate()
        print(f"{name:<24}{time.monotonic() - start:6.1f} s", file=sys.stderr, flush=True)
        if process.returncode:
            said = (output + errors).decode(errors="replace")
            raise RuntimeError(f"{shlex.join(command)}\n{said}\nended with status {process.returncode}")
        if name.startswith("answers"):
            (place / name).write_bytes(output)

    makes = {name: MAKE[name].replace(" ", f" {ALL.format(name)} ", 1) for name in names or MAKE}
    for table in (makes,) if names else (makes, SHOW, LATER):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, table.keys(), map(shlex.split, table.values())))
    return hashes(place)


def hashes(place: Path) -> dict[str, str]:
    """run/stage/file -> sha256 of everything in a directory that is RECORDED."""
    found = {}
    for pattern, content in RECORDED.items():
        for path in place.glob(pattern):
            if not (holds := content(path)):
                continue
            sha256 = hashlib.sha256(holds).hexdigest()
            parts = path.relative_to(place).parts
            parts = [RENAMED.get(part, part) for part in parts if part not in ("runs", "model")]
            if parts[0] == ".cache":  # its directories are named after options
                parts = [parts[0], parts[-1], sha256[:12]]
            found["/".join(parts)] = sha256
    return dict(sorted(found.items()))


def compare(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """A line for each name whose hash is not the same in both."""
    lines = [f"differs  {name}" for name in before if name in after and before[name] != after[name]]
    lines += [f"missing  {name}" for name in before if name not in after]
    return lines + [f"new      {name}" for name in after if name not in before]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording, comparing = commands.add_parser("record"), commands.add_parser("compare")
    recording.add_argument("file", type=Path)
    recording.add_argument("--root", type=Path, default=ROOT, help="the checkout whose code is run")
    recording.add_argument("--jobs", type=int, default=2, help="commands at once [2]")
    recording.add_argument("--only", nargs="+", default=[], choices=MAKE, help="these runs alone")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    o = parser.parse_args()
    if o.command == "compare":
        lines = compare(json.loads(o.before.read_text()), json.loads(o.after.read_text()))
        print("\n".join(lines) or "the same")
        return int(bool(lines))
    with tempfile.TemporaryDirectory() as place:
        found = record(Path(place), o.only, o.root, jobs=o.jobs)
    o.file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} hashes in {o.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
