"""What the machine offers, and what is wrong with a run's directory. Nothing is mended here."""

import importlib.metadata
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.store import read_json
from pipeline.config.errors import explain
from pipeline.plan import made_in, native_precision, read_finished
from pipeline.run_lock import lock_state
from stages.tasks import packages
from stages.training.machine_limits import cores, memory

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
NAMED = ("torch", "transformers", "deepspeed", "datasets")
HUB_SECONDS = 3
WRONG = "WRONG"


class Report:
    """Aligned lines, each marked ok, note or WRONG."""

    def __init__(self):
        self.wrong = 0

    def head(self, title: str) -> None:
        """Open a section."""
        print(f"\n{title}")

    def say(self, mark: str, what: str, text: str) -> None:
        """One line."""
        self.wrong += mark == WRONG
        print(f"  {mark:<6} {what:<40} {text}", flush=True)


def look_at_machine(report: Report, runs: Path) -> None:
    """Cores, precision, GPUs, memory, disk, versions, ssh, packaged files, hub."""
    report.head("machine")
    report.say("ok", "cores", f"{cores()} that this process may use")
    report.say("ok", "precision", f"{native_precision()} by job.precision=auto")
    _gpus(report)
    total, free = memory()
    report.say("ok", "memory", f"{shown(free)} free of {shown(total)}")
    report.say("ok", "disk", f"{shown(free_disk(runs))} free under {runs}/")
    _versions(report)
    ssh = shutil.which("ssh")
    report.say("ok" if ssh else "note", "ssh", ssh or "none: HOSTFILE= with other hosts needs it")
    for what in ("teacher", "corpus", "reviews", "vectors"):
        try:
            report.say("ok", f"packaged {what}", getattr(packages, f"packaged_{what}")().name)
        except UserError as error:
            report.say("note", f"packaged {what}", str(explain(error)))
    report.say(*_hub())


def look_at_run(report: Report, run: Path) -> None:
    """Every stage of a run: finished, half done or damaged, and the mend."""
    report.head(f"run {run.name}")
    _lock(report, run)
    for name in ("options.json", "results.json"):
        if (run / name).exists() and not read_json(run / name):
            report.say(WRONG, name, "torn: the same command writes it again")
    marks = ("stage.json", "finished.json", "checkpoints", "model")
    for directory in sorted(path for path in run.iterdir() if any((path / mark).exists() for mark in marks)):
        _stage(report, directory)
    for path in sorted(run.rglob(".*")):
        if path.name.startswith((".writing-", ".old-")) or re.fullmatch(r"\..+\.\d+", path.name):
            text = f"{path} was left by an interrupted write: the next save removes it, or you may"
            report.say("note", "left over", text)


def _stage(report: Report, directory: Path) -> None:
    name, again = directory.name, "the same command makes the stage again"
    finished, whole = read_finished(directory), {}
    if (directory / "finished.json").exists() and not finished:
        report.say(WRONG, name, f"finished.json is torn: {again}")
    if finished:
        made = made_in(directory, finished)
        damage = _damage(made / "model")
        mend = f"remove {made} and run the same command again, which makes it anew"
        where = "" if made == directory else f", made by run {made.parent.name}"
        report.say(WRONG if damage else "ok", name, f"{damage}: {mend}" if damage else f"finished{where}")
    for kind in ("checkpoints", "best"):
        found = {path.name: _damage(path) for path in sorted((directory / kind).glob("step-*"))}
        whole[kind] = [step for step, damage in found.items() if not damage]
        for damage in found.values():
            if damage and kind == "best":
                report.say(WRONG, name, f"{damage}: if it stays the best, restart=true begins the stage anew")
            elif damage:
                instead = f"goes on from {whole[kind][-1]}" if whole[kind] else "begins the stage anew"
                report.say(WRONG, name, f"{damage}: the same command names it and {instead}")
    spec = read_json(directory / "stage.json")
    if (directory / "stage.json").exists() and not spec.get("fingerprint"):
        mend = "restart=true begins the stage anew" if whole["checkpoints"] and not finished else again
        report.say(WRONG, name, "stage.json is torn: " + ("remove the stage's directory, or leave it: "
                   "only the cause of a later change is lost" if finished else mend))  # fmt: skip
    elif not finished:
        at = (
            f"half done at {whole['checkpoints'][-1]}" if whole["checkpoints"] else "begun, nothing saved yet"
        )
        report.say("note", name, f"{at}: the same command goes on")


def _lock(report: Report, run: Path) -> None:
    try:
        lock = lock_state(run)
    except OSError as error:
        report.say(WRONG, "lock", f"{error.filename}: {error.strerror}")
        return
    if lock.held:
        owner = lock.owner or "another process"
        report.say("note", "lock", f"{owner} is working on it now: what follows may change")
    elif lock.owner:
        report.say("note", "lock", f"left by {lock.owner}, which is gone: the next command takes it over")
    else:
        report.say("ok", "lock", "free")


def _damage(directory: Path) -> str:
    try:
        store.verify(directory)
    except store.Damaged as damage:
        return str(damage)
    return ""


def _gpus(report: Report) -> None:
    if not Path("/dev/nvidiactl").exists():
        report.say("note", "GPU", "none: stages run on the CPU")
        return
    import torch

    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        report.say("ok", f"GPU {i}", f"{about.name}, {shown(about.total_memory)}")
    if not torch.cuda.is_available():
        report.say("note", "GPU", "there is a driver, but this torch sees no GPU: stages run on the CPU")


def _versions(report: Report) -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    report.say("ok" if sys.version_info >= (3, 11) else WRONG, "python", f"{python}, needed is 3.11 or newer")
    lines = CONSTRAINTS.read_text(encoding="utf-8").split() if CONSTRAINTS.is_file() else []
    drift = []
    for name, _, pinned in (line.partition("==") for line in lines):
        try:
            there = importlib.metadata.version(name).partition("+")[0]  # torch's +cpu is no other version
        except importlib.metadata.PackageNotFoundError:
            if name in NAMED:
                report.say(WRONG, name, f"is not installed, pinned is {pinned}: run `make setup`")
            continue
        if name in NAMED and there == pinned:
            report.say("ok", name, there)
        elif there != pinned:
            drift.append(f"{name} {there} (pinned {pinned})")
    if drift:
        report.say(
            "note",
            "versions",
            f"other than constraints.txt: {', '.join(drift)}; `make setup` brings them back",
        )


def _hub() -> tuple[str, str, str]:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "note", "hub", "not asked, for HF_HUB_OFFLINE is set: names on the hub need its cache"
    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        return "note", "hub", f"out of reach ({error}): local and packaged models and data work"
    return "ok", "hub", "in reach"


def free_disk(directory: Path) -> float:
    there = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free


def shown(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
