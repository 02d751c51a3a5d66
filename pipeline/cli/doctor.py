"""Checks the machine and a run's directory, and says how to fix what is wrong. Changes nothing of a run."""

import contextlib
import importlib.metadata
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.store import read_json
from pipeline.config.option_errors import explain
from pipeline.plan import made_in, read_finished
from pipeline.program import near, python
from pipeline.run_lock import lock_state
from stages.tasks import packages
from stages.training.machine_limits import cores, memory

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
SHOWN_PACKAGES = ("torch", "transformers", "deepspeed", "datasets")
HUB_TIMEOUT = 3  # seconds
NVIDIA_DRIVER = Path("/sys/module/nvidia/version")
"""Where Linux tells the version of NVIDIA's driver."""


class Report:
    """Prints findings as they come, in sections of aligned lines.

    Attributes:
        wrong: how many findings are wrong.
    """

    wrong = 0

    def section(self, title: str) -> None:
        """Begin a section."""
        print(f"\n{title}")

    def ok(self, subject: str, text: str) -> None:
        """Report what is as it should be."""
        self._line("ok", subject, text)

    def note(self, subject: str, text: str) -> None:
        """Report what is worth knowing and stops nothing."""
        self._line("note", subject, text)

    def fix(self, subject: str, text: str) -> None:
        """Report what is wrong, and how to fix it."""
        self.wrong += 1
        self._line("WRONG", subject, text)

    @contextlib.contextmanager
    def findings(self, subject: str, stage_type: str = "") -> Iterator[None]:
        """Report whatever the block raises as wrong: a check that fails is a finding, too."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(OSError):
                error = explain(error, stage_type) if isinstance(error, UserError | OSError) else error
            # UserError, or transformers' own for sizes that do not go together.
            known = isinstance(error, ValueError)
            self.fix(subject, " ".join(f"{'' if known else f'{type(error).__name__}: '}{error}".split()))

    def _line(self, status: str, subject: str, text: str) -> None:
        print(f"  {status:<6} {subject:<40} {text}", flush=True)


def check_machine(report: Report, runs: Path) -> None:
    """Report cores, precision, GPUs, memory, disk, versions, ssh, packaged files, and whether the hub answers."""
    report.section("machine")
    report.ok("cores", f"{cores()} available to this process")
    _check_gpus(report)
    total, free = memory()
    report.ok("memory", f"{format_bytes(free)} free of {format_bytes(total)}")
    space = free_disk(runs)
    if space:
        report.ok("disk", f"{format_bytes(space)} free under {runs}/")
    else:
        report.fix("disk", f"no space is left under {runs}/: free some")
    _check_versions(report)
    if ssh := shutil.which("ssh"):
        report.ok("ssh", ssh)
    else:
        report.note("ssh", "not installed: only runs on several hosts (job.hostfile) need it")
    found = {
        "teacher": packages.packaged_teacher,
        "corpus": packages.packaged_corpus,
        "reviews": packages.packaged_reviews,
        "vectors": packages.packaged_vectors,
    }
    for name, find in found.items():
        try:
            find()
            report.ok(f"packaged {name}", "installed")
        except UserError as error:
            report.note(f"packaged {name}", str(explain(error)))
    _check_hub(report)


def check_run(report: Report, run: Path) -> None:
    """Report the lock, every stage (finished, half done or damaged), and what interrupted writes left."""
    report.section(f"run {run.name}")
    _check_lock(report, run)
    if not any((run / name).exists() for name in ("options.json", "hub.json")):
        report.fix("options.json", "missing, so the directory is no run: give another run=NAME")
    for name in ("options.json", "results.json"):
        if (run / name).exists() and not read_json(run / name):
            report.fix(name, "incomplete: run the same command again, which writes it")
    marks = ("stage.json", "finished.json", "checkpoints", "model")
    for directory in sorted(path for path in run.iterdir() if any((path / mark).exists() for mark in marks)):
        _check_stage(report, directory)
    for path in sorted(run.rglob(".*")):
        if path.name.startswith((".writing-", ".old-")) or re.fullmatch(r"\..+\.\d+", path.name):
            report.note("left over", f"{path}, from an interrupted write: the next save removes it")


def _check_stage(report: Report, directory: Path) -> None:
    stage, finished = directory.name, read_finished(directory)
    if (directory / "finished.json").exists() and not finished:
        why = "is incomplete, or names a run that has made another in its place"
        report.fix(stage, f"finished.json {why}: run the same command, which runs the stage again")
    if finished:
        made = made_in(directory, finished)
        if damage := store.damage(made / "model"):
            report.fix(stage, f"{damage}: remove {made} and run the same command, which runs the stage again")
        else:
            report.ok(stage, "finished" if made == directory else f"reused from run {made.parent.name}")
    whole = _check_saved(report, directory)
    spec = directory / "stage.json"
    spec_is_torn = spec.exists() and not read_json(spec).get("fingerprint")
    if spec_is_torn and finished:
        text = "remove the stage's directory, or leave it: it only tells why a stage runs again"
        report.fix(stage, f"stage.json is incomplete: {text}")
    elif spec_is_torn:
        how = "with restart=true" if whole else "again"
        report.fix(
            stage, f"stage.json is incomplete: run the same command {how}, which starts the stage over"
        )
    elif not finished and (whole or not (directory / "finished.json").exists()):
        at = f"half done at {whole[-1]}" if whole else "started, nothing saved yet"
        report.note(stage, f"{at}: the same command resumes it")


def _check_saved(report: Report, directory: Path) -> list[str]:
    """Report damaged checkpoints and best weights; returns the names of the undamaged checkpoints, oldest first."""
    whole: list[str] = []
    for path in sorted(directory.glob("checkpoints/step-*")):
        if damage := store.damage(path):
            then = f"resumes from {whole[-1]}" if whole else "starts the stage over"
            report.fix(directory.name, f"{damage}: run the same command, which reports it and {then}")
        else:
            whole.append(path.name)
    for path in sorted(directory.glob("best/step-*")):
        if damage := store.damage(path):
            text = "if no later step is better, restart=true starts the stage over"
            report.fix(directory.name, f"{damage}: {text}")
    return whole


def _check_lock(report: Report, run: Path) -> None:
    try:
        lock = lock_state(run)
    except OSError as error:
        report.fix("lock", f"{error.filename}: {error.strerror}; remove it if no command works on the run")
        return
    if lock.held:
        report.note("lock", f"held by {lock.owner or 'another process'}, which is working on the run now")
    elif lock.owner:
        report.note("lock", f"free; {lock.owner} did not end in an orderly way")
    else:
        report.ok("lock", "free")


def _check_gpus(report: Report) -> None:
    import torch

    from stages.distillation.device import accelerator, native_precision

    kind = accelerator()
    report.ok("precision", f"{native_precision(kind)} (job.precision=auto)")
    if kind == "cpu":
        built = torch.version.cuda or torch.version.hip
        why = "DS_ACCELERATOR and torch see none" if built else "the installed torch is a build for CPUs"
        report.note("GPU", f"none ({why}): stages run on the CPU")
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        text = f"{properties.name}, {format_bytes(free)} free of {format_bytes(total)}"
        report.ok(f"GPU {i}", f"{text}, compute capability {properties.major}.{properties.minor}")
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
    libraries = (
        f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}, NCCL {nccl}"
    )
    if NVIDIA_DRIVER.is_file():
        libraries = f"driver {NVIDIA_DRIVER.read_text(encoding='utf-8').strip()}, {libraries}"
    report.ok("GPU libraries", libraries)


def _check_versions(report: Report) -> None:
    report.ok("python", ".".join(map(str, sys.version_info[:3])))
    # constraints.txt is not part of the installed package.
    lines = CONSTRAINTS.read_text(encoding="utf-8").split() if CONSTRAINTS.is_file() else SHOWN_PACKAGES
    named, others = [], 0
    for line in lines:
        name, _, pinned = line.partition("==")
        try:
            # +cpu of torch is the same version.
            installed = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            if name in SHOWN_PACKAGES:
                report.fix(name, f"not installed: run `{python()} -m pip install {line}`")
            continue
        differs = bool(pinned) and installed != pinned
        if differs and name in SHOWN_PACKAGES:
            named.append(f"{name} {installed} (pinned {pinned})")
        elif name in SHOWN_PACKAGES:
            report.ok(name, installed)
        else:
            others += differs
    if named or others:
        pinned = f"`{python()} -m pip install -c {near(CONSTRAINTS)} -e {near(CONSTRAINTS.parent)}` installs the pinned ones"
        named += [f"{others} of other packages"] if others else []
        text = f"not those of constraints.txt: {', '.join(named)}; {pinned}"
        report.note("versions", text)


def _check_hub(report: Report) -> None:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        report.note("hub", "not tried, HF_HUB_OFFLINE is set: models and data come from its cache")
        return
    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        report.note("hub", f"cannot be reached ({error}): local and packaged models and data still work")
        return
    report.ok("hub", "can be reached")


def free_disk(directory: Path) -> int:
    """Free bytes on the disk on which `directory` lies, or would lie."""
    there = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free


def format_bytes(size: float) -> str:
    """A number of bytes in MB or GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
