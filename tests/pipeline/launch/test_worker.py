"""What a rank says of a stage that it cannot run."""

import torch

from pipeline.launch.worker import run_stage


def test_a_stage_that_vanished_before_it_was_opened_is_one_line(tmp_path, capsys):
    assert run_stage(tmp_path / "intermediate", torch.device("cpu"), lambda after_rank_0: False) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: intermediate: "), lines
