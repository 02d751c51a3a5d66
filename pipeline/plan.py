"""Planning, as make does it: skip what is finished, resume what is half done, run again what changed.

Nothing here imports torch: a plan is made in well under a second.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.fingerprint import fingerprint
from checkpoints.store import read_json
from pipeline.config.deepspeed_file import read_deepspeed, what_changes_weights
from pipeline.config.option_errors import SECTIONS
from pipeline.config.run_options import Options
from pipeline.config.two_stage import StageSpec

RUNS = Path("runs")

FORMAT = 2
"""Cache version. Raise it when the same options would produce a different result: finished stages then run again."""

FORMATS = {"check": 5, "general": 4, "masked_lm": 4, "pretrain": 4, "intermediate": 3, "evaluate": 5}
"""Stage type -> its own version; the higher of the two counts."""


HALF_DONE = ("checkpoints/step-*", "teacher/*/*/manifest.json", "logits/*/*/manifest.json")
"""What is in the directory of a stage that has begun: its own checkpoints, the teacher's shards, evaluated models."""

ACTION_LABELS = {
    "skip": "finished",
    "reuse": "reused from another run",
    "resume": "resuming",
    "run": "pending",
}
"""What a command says of a stage, by the action that is planned for it."""


@dataclass
class Planned:
    """A stage, and what to do about it.

    Attributes:
        action: skip (finished), reuse (another run's), resume (half done) or run.
        made: the directory in which it runs or ran: its own, or another run's.
        cause: why a finished stage runs again.
        discards: whether half-done work is in its directory, which is removed when its turn comes.
        deepspeed: what the run's own DeepSpeed config adds to the engine's.
    """

    stage: StageSpec
    directory: Path
    fingerprint: str
    action: Literal["skip", "reuse", "resume", "run"]
    made: Path
    cause: str = ""
    discards: bool = False
    deepspeed: dict[str, Any] = field(default_factory=dict)

    @property
    def artefact(self) -> Path:
        """The directory of what the stage made."""
        return self.made / "model"

    def __str__(self) -> str:
        """What a command says of it: what is done about the stage, and why it runs again."""
        where = f" ({os.path.relpath(self.made)})" if self.action == "reuse" else ""
        again = "; changed here: " if self.action == "reuse" else " again: "
        cause = again + self.cause if self.cause else ""
        discards = "; what is half done here is discarded" if self.discards else ""
        return f"{ACTION_LABELS[self.action]}{where}{cause}{discards}"


def plan(stages: list[StageSpec], run: Path, options: Options) -> list[Planned]:
    """Decide for each stage, in order, whether it is skipped, reused, resumed or run.

    Args:
        stages: in order; each reads earlier ones by name.
        options: of the run; it reads `reuse`, `restart` and `job`.

    Raises:
        UserError: the options of a half-done stage changed, and `restart` is not set; or the DeepSpeed config is refused.
    """
    planned: dict[str, Planned] = {}
    deepspeed = read_deepspeed(options.job)
    others = _finished_elsewhere(run) if options.reuse else {}
    for stage in stages:
        if "training" in stage.options:
            stage = replace(stage, options=stage.options | what_changes_weights(deepspeed))
        inputs = {
            name: planned[value].fingerprint if isinstance(value, str) else _identity(value)
            for name, value in stage.inputs.items()
        }
        key = fingerprint(
            {
                "stage_type": stage.stage_type,
                "options": stage.options,
                "inputs": inputs,
                "format": _format(stage),
            }
        )
        directory = run / stage.name
        made = [planned[value] for value in stage.inputs.values() if isinstance(value, str)]
        renewed = [step.stage.name for step in made if step.action != "skip"]
        decided = _decide(stage, directory, key, inputs, renewed, others, options)
        planned[stage.name] = replace(decided, deepspeed=deepspeed)
    return list(planned.values())


def _decide(
    stage: StageSpec,
    directory: Path,
    key: str,
    inputs: dict,
    renewed: list[str],
    others: dict[str, Path],
    options: Options,
) -> Planned:
    finished, spec = read_finished(directory), read_json(directory / "stage.json")
    reused, same = read_json(directory / "finished.json").get("from"), finished.get("fingerprint") == key
    if same and (options.reuse or not reused):
        # What a file holds is looked at when it is read.
        made = made_in(directory, finished)
        if store.is_whole(made / "model", contents=False):
            return Planned(stage, directory, key, "skip", made)
    cause = _difference(spec, stage, key, inputs, renewed) if finished else ""
    if reused and (same or not finished):
        gone = options.reuse or not same
        cause = "the run that it was reused from no longer has it" if gone else "reuse=false"
    half_done = not finished and any(any(directory.glob(pattern)) for pattern in HALF_DONE)
    elsewhere = others.get(key) if stage.stage_type != "evaluate" else None
    if half_done and spec.get("fingerprint") == key and not options.restart:
        # Its work is given up only for an artefact that is known to be whole.
        if not elsewhere or not store.is_whole(elsewhere / "model"):
            return Planned(stage, directory, key, "resume", directory)
    elif half_done and not options.restart and stage.stage_type != "evaluate":
        raise UserError(
            f"{directory} is half done with other options ({_difference(spec, stage, key, inputs, renewed)}): "
            "use the previous options, restart=true to discard it, or another run=NAME"
        )
    if elsewhere:
        return Planned(stage, directory, key, "reuse", elsewhere, cause, half_done)
    return Planned(stage, directory, key, "run", directory, cause, half_done)


def reused_by_now(planned: Planned) -> Planned:
    """Reuse another run's stage if that was finished since the plan was made; else return the planned one."""
    made = _finished_elsewhere(planned.directory.parent).get(planned.fingerprint)
    return replace(planned, action="reuse", made=made) if made else planned


def check_inputs(planned: Planned, steps: Mapping[str, Planned]) -> None:
    """Check that what a stage reads of other runs is still what the plan found there.

    Args:
        steps: the steps of its run, by name.

    Raises:
        UserError: the other run has been changed or removed meanwhile.
    """
    for step in (steps[value] for value in planned.stage.inputs.values() if isinstance(value, str)):
        if read_finished(step.made).get("fingerprint") != step.fingerprint:
            raise UserError(
                f"{step.made}, which {planned.stage.name} reads, was changed or removed since this command began: run the "
                "same command again"
            )


def write_stage_spec(planned: Planned, artefacts: dict[str, Path], options: Options) -> None:
    """Write the `stage.json` that the worker reads, and remove what an earlier stage of that name left."""
    directory = planned.directory
    if planned.action in ("run", "reuse"):
        shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    if planned.action == "reuse" and planned.made:
        other = os.path.relpath(planned.made, directory)
        finished = read_finished(planned.made)
        store.write_json(directory / "finished.json", finished | {"from": other})
    former = read_json(directory / "stage.json").get("job")
    job = asdict(options.job)
    for name, choices in (("precision", ("bf16", "fp16", "fp32")), ("compile", ("on", "off"))):
        before = former.get(name) if isinstance(former, dict) else None
        if job[name] == "auto" and before in choices:  # where there is none the stage's ranks decide
            job[name] = before
    inputs = {
        name: {"stage": value, "path": str(artefacts[value].resolve())} if isinstance(value, str) else value
        for name, value in planned.stage.inputs.items()
    }
    store.write_json(directory / "stage.json", {
        "name": planned.stage.name, "stage_type": planned.stage.stage_type, "options": planned.stage.options, "inputs": inputs,
        "identities": {k: v if isinstance(v, str) else _identity(v) for k, v in planned.stage.inputs.items()},
        "fingerprint": planned.fingerprint, "format": _format(planned.stage), "job": job, "deepspeed": planned.deepspeed,
    })  # fmt: skip


def _identity(source: dict[str, Any]) -> dict[str, Any]:
    """What identifies an input: its contents, not where it is or whether it may be fetched."""
    identity = {k: v for k, v in source.items() if k not in ("path", "name", "download")}
    if "identity" in identity:
        identity["identity"] = {k: v for k, v in identity["identity"].items() if k != "files"}
    return identity


def _finished_elsewhere(run: Path) -> dict[str, Path]:
    """Fingerprint -> directory, of every stage that another run finished itself."""
    found = {}
    for path in sorted(run.parent.glob("*/*/finished.json")):
        finished = read_finished(path.parent)
        if (
            finished
            and path.parent.parent != run
            and not finished.get("from")
            and store.is_whole(path.parent / "model", contents=False)
        ):
            found[finished["fingerprint"]] = path.parent
    return found


def _difference(spec: dict, stage: StageSpec, key: str, inputs: dict, renewed: list[str]) -> str:
    """What differs between the options and inputs with which a stage started, and those it has now.

    Args:
        spec: the stage's `stage.json`.
        stage: as it is now.
        key: its fingerprint, as it is now.
        inputs: what identifies each input.
        renewed: the stages among its inputs that are not finished as they are.
    """
    before = _flat(spec.get("options", {}), stage.name) | _flat(
        spec.get("identities", {}), f"{stage.name}'s "
    )
    given = {k: v if isinstance(v, str) else inputs[k] for k, v in stage.inputs.items()}
    now = _flat(stage.options, stage.name) | _flat(given, f"{stage.name}'s ")
    before[f"{stage.name}'s format"], now[f"{stage.name}'s format"] = spec.get("format", 1), _format(stage)
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    if not changed:
        made = renewed or [value for value in stage.inputs.values() if isinstance(value, str)]
        if made and spec.get("fingerprint") != key:
            return f"its input changed: {' or '.join(made)}"
        return "it is damaged, or another version made it"
    changes = []
    for key in changed[:2]:
        if "content" in key:
            changes.append(f"{key.replace('.content', '')} changed")
        elif key not in before or key not in now:
            changes.append(f"{key} is {'new' if key in now else 'gone'}")
        else:
            changes.append(f"{key} was {before[key]}, is {now[key]}")
    text = "; ".join(changes)
    section = SECTIONS.get(stage.stage_type, stage.stage_type)
    if is_dataclass(getattr(Options(), section, None)):  # not a recipe's own student
        text = text.replace(f"{stage.name}.training.", f"{section}.")
    for group in ("architecture", "augmentation"):
        text = text.replace(f"{stage.name}.{group}.", f"{group}.")
    return text + (" ..." if changed[2:] else "")


def _format(stage: StageSpec) -> int:
    return max(FORMAT, FORMATS.get(stage.stage_type, FORMAT))


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    joint = "" if prefix.endswith(" ") else "."
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}{joint}{key}").items()}


def read_finished(directory: Path) -> dict:
    """A stage's `finished.json`.

    Returns {} if the file is missing or torn, if it points to something other than a stage of another run, or if that
    run has since replaced the stage.
    """
    finished = read_json(directory / "finished.json")
    other = finished.get("from", "")
    if not isinstance(finished.get("fingerprint"), str) or not isinstance(other, str):
        return {}
    parts = Path(other).parts
    beside = parts[:2] == ("..", "..") and len(parts) == 4 and ".." not in parts[2:]
    if other and not beside:
        return {}
    there = read_json(made_in(directory, finished) / "finished.json")
    made_anew = there and there.get("fingerprint") != finished["fingerprint"]
    return {} if made_anew else finished


def made_in(directory: Path, finished: dict | None = None) -> Path:
    """The directory in which a finished stage ran: its own, or that of the run it was reused from.

    Args:
        finished: what `read_finished` says of it; None: it is read.
    """
    finished = read_finished(directory) if finished is None else finished
    return (directory / finished["from"]).resolve() if finished.get("from") else directory
