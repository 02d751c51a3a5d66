"""The lines of metrics.jsonl as curves in TensorBoard, Weights & Biases or CSV files, through DeepSpeed's monitor."""

import json
import os
from pathlib import Path
from typing import Any

from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster

from checkpoints import store
from checkpoints.errors import UserError
from stages.training.stage import Stage

NO_CURVES = ("step", "epoch", "seconds", "best")


class Monitor:
    """What a stage logs, shown elsewhere. On rank 0.

    A resumed stage tells again what its log holds: the lines of steps that are taken again are not in it any more.

    Args:
        stage: its `job.monitor` names the kind; files go under its directory.
        log: its metrics.jsonl.

    Raises:
        UserError: it cannot start, as where Weights & Biases knows no key.
    """

    def __init__(self, stage: Stage, log: Path):
        self.kind, run = stage.job.monitor, stage.directory.parent.name
        directory, first = stage.directory / "monitor", 0
        files = {"output_path": str(stage.directory), "job_name": directory.name}
        settings = {
            "wandb": {"project": "tinydistil", "group": run},
            "tensorboard": files,
            "csv_monitor": files,
        }
        section = "csv_monitor" if self.kind == "csv" else self.kind
        if self.kind == "wandb":  # it finds the id of a run that was broken off in its directory
            directory.mkdir(exist_ok=True)
            names = {"WANDB_DIR": str(directory), "WANDB_RESUME": "auto", "WANDB_NAME": f"{run}/{stage.name}"}
            os.environ.update(names | {name: os.environ[name] for name in names if name in os.environ})
        else:
            store.remove(directory)
        try:
            self.master = MonitorMaster(get_monitor_config({section: settings[section] | {"enabled": True}}))
        except Exception as error:  # a library's own, whatever it is
            raise UserError(f"job.monitor={self.kind} cannot start: {error}") from error
        if self.kind == "wandb":
            import wandb

            first = wandb.run.starting_step
        for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
            if (told := json.loads(line))["step"] >= first:
                self.write(told)

    def write(self, line: dict[str, Any]) -> None:
        """Show the numbers of a line at its step."""
        curves = [(name, value, line["step"]) for name, value in line.items() if name not in NO_CURVES]
        self.master.write_events(curves)

    def close(self) -> None:
        """Weights & Biases writes behind the job's back: wait for it."""
        if self.kind == "wandb":
            import wandb

            wandb.finish()
