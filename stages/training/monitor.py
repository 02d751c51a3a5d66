"""The lines of metrics.jsonl as curves in TensorBoard, Weights & Biases or CSV files, through DeepSpeed's monitor."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster

from checkpoints import store
from checkpoints.errors import UserError
from stages.training.stage import Stage

NO_CURVES = ("step", "epoch", "seconds", "best")


class Monitor:
    """Shows what a stage logs. On rank 0.

    A resumed stage sends its whole log again, from which the lines of steps that are taken again are gone.

    Args:
        stage: its `job.monitor` names the service; files go under its directory.
        log: its metrics.jsonl.

    Raises:
        UserError: the service cannot start (Weights & Biases has no key).
    """

    def __init__(self, stage: Stage, log: Path):
        self.service, run = stage.job.monitor, stage.directory.parent.name
        directory, first = stage.directory / "monitor", 0
        files = {"output_path": str(stage.directory), "job_name": directory.name}
        settings = {
            "wandb": {"project": "tinydistil", "group": run},
            "tensorboard": files,
            "csv_monitor": files,
        }
        section = "csv_monitor" if self.service == "csv" else self.service
        if self.service == "wandb":  # it finds the id of an interrupted run in its directory
            directory.mkdir(exist_ok=True)
            names = {"WANDB_DIR": str(directory), "WANDB_RESUME": "auto", "WANDB_NAME": f"{run}/{stage.name}"}
            os.environ.update(names | {name: os.environ[name] for name in names if name in os.environ})
        else:
            store.remove(directory)
        try:
            self.master = MonitorMaster(get_monitor_config({section: settings[section] | {"enabled": True}}))
        except Exception as error:  # a library's own, whatever it is
            raise UserError(f"{self.service} cannot start: {error}", argument="monitor") from error
        if self.service == "wandb":
            import wandb

            stage.resources.callback(wandb.finish)
            first = wandb.run.starting_step
        for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
            if (logged := json.loads(line))["step"] >= first:
                self.write(logged)

    def write(self, line: Mapping[str, Any]) -> None:
        """Show the numbers of a line of the log at its step."""
        curves = [(name, value, line["step"]) for name, value in line.items() if name not in NO_CURVES]
        self.master.write_events(curves)

    def close(self) -> None:
        """Wait for Weights & Biases, which writes in the background."""
        if self.service == "wandb":
            import wandb

            wandb.finish()
