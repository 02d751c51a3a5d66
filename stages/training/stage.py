"""A stage as its worker sees it: options, inputs, directory, and how it logs and publishes."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from checkpoints import store
from checkpoints.errors import UserError
from stages.distillation.device import is_fast, native_precision
from stages.distillation.models import ModelSource
from stages.tasks.task import Task, TaskSource, load_task
from stages.training.machine import describe
from stages.training.options import TRAINING, Job, Training

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class Stage:
    """One stage of one run.

    Attributes:
        name: its name in the run, which is also its directory's.
        stage_type: which of the stage types runs it (`pipeline.launch.stage_types`).
        directory: runs/<run>/<name>.
        options: that decide its result; those of training under "training".
        inputs: name -> a model ({"path": ...} or {"hub": ..., "revision": ...}) or a data source.
        fingerprint: the fingerprint of type, options and inputs.
        job: how it runs: the `job` options.
        deepspeed: what a user's own DeepSpeed config adds to the engine's.
        resources: closed when the stage is over: what must not live on into the next stage of the same process.
    """

    name: str
    stage_type: str
    directory: Path
    options: dict[str, Any]
    inputs: dict[str, Any]
    fingerprint: str
    job: Job
    device: torch.device
    deepspeed: dict[str, Any] = field(default_factory=dict)
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @staticmethod
    def open(directory: Path, device: torch.device) -> "Stage":
        """Read a stage from the `stage.json` that planning left in its directory, where its precision is then kept."""
        spec = json.loads((directory / "stage.json").read_text(encoding="utf-8"))
        stage = Stage(
            spec["name"], spec["stage_type"], directory, spec["options"], spec["inputs"], spec["fingerprint"],
            Job(**spec["job"]), device, spec.get("deepspeed", {}),
        )  # fmt: skip
        if stage.job.precision == "auto":
            stage.keep(precision=native_precision(device, stage.job.zero))
        return stage

    def keep(self, **settings: Any) -> None:
        """Keep in `stage.json` what `auto` has come to mean, so that a resumed stage does the same."""
        self.job = replace(self.job, **settings)
        if is_first_rank():
            path = self.directory / "stage.json"
            store.write_json(path, store.read_json(path) | {"job": asdict(self.job)})

    @property
    def training(self) -> Training:
        """The training options, of the type that belongs to this type of stage."""
        return TRAINING.get(self.stage_type, Training)(**self.options["training"])

    @property
    def seed(self) -> int:
        """The seed of initialisation, data order and dropout."""
        return self.options["seed"]

    @property
    def precision(self) -> torch.dtype:
        """The precision of matrix products; parameters stay in fp32."""
        return PRECISIONS[self.job.precision]

    def warn_of_slow_precision(self) -> None:
        """Warn of a precision that is slow on the device (set by hand, or by the machine that began the stage)."""
        fast = native_precision(self.device, self.job.zero)
        if not is_fast(self.precision, self.device):
            text = f"{self.job.precision} is slow on this device, which may even emulate it: {fast} is faster here"
        elif self.precision == torch.float32 and self.device.type == "cuda" and fast != "fp32":
            text = f"fp32 on a GPU: {fast} is several times faster here"
        else:
            return
        self.log(f"{text}; a half-done stage may resume in it, equal within rounding")

    @property
    def cache(self) -> Path:
        """The directory of tokenized data that all runs share."""
        return self.directory.parent.parent / ".cache"

    def model(self, name: str) -> ModelSource:
        """The source of a model among the inputs; one that a stage made is checked against its manifest first."""
        if self.inputs[name].get("stage"):
            self.artifact_dir(name)
        return ModelSource.of(self.inputs[name], self.options.get("allow_bin", False))

    def artifact_dir(self, name: str) -> Path:
        """The directory of an input that a stage made, checked against its manifest."""
        entry = self.inputs[name]
        path = Path(entry["path"])
        try:
            store.verify(path)
        except store.Damaged as damage:
            raise UserError(
                f"the output of stage {entry['stage']} is damaged ({damage}); "
                f"remove {path.parent} and run the same command again"
            ) from damage
        return path

    def task(self, given: str = "task") -> Task:
        """The rows of the task that is the input `given`."""
        source = self.inputs[given]
        return load_task(TaskSource.of(source), source.get("revision"))

    def log(self, text: str) -> None:
        """One line to the user, from rank 0, past the progress bar."""
        if is_first_rank():
            tqdm.write(f"  {self.name}: {text}", file=sys.stdout)
            sys.stdout.flush()

    def publish(self, write: Callable[[Path], object], scores: dict[str, Any]) -> None:
        """Seal the stage's output in `model/` and mark the stage finished. Rank 0 writes.

        Args:
            write: writes the output's files into the directory it is given.
            scores: for `finished.json`, which people and later stages read.
        """
        if is_first_rank():
            with store.sealed(self.directory / "model") as directory:
                write(directory)
            finished = {
                "fingerprint": self.fingerprint,
                "scores": scores,
                "time": time.strftime("%F %T"),
                "machine": describe(),
            }
            store.write_json(self.directory / "finished.json", finished)
            for name in ("checkpoints", "best", "teacher", "logits"):
                store.remove(self.directory / name)
        barrier()


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In the block this process waits for no other rank: they take no part in what it does."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def ranks() -> tuple[int, int]:
    """The number of ranks that work on this stage, and this one's."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() and not _alone else (1, 0)


def wait_for(paths: Iterable[Path]) -> None:
    """Wait until other ranks have made these, however long that takes: a collective gives up after minutes."""
    for path in paths:
        while not path.exists():
            time.sleep(0.1)


def barrier() -> None:
    """Wait for the other ranks, if there are any."""
    if dist.is_initialized() and not _alone:
        dist.barrier()
