"""Errors name the argument at fault, and the command line the option that sets it."""

import errno
import os
import pickle

import pytest

from checkpoints.errors import UserError, about, to_user_error
from pipeline.config.option_errors import explain


def test_an_error_names_its_argument_in_one_line():
    assert str(UserError("1.5 is not a\nprobability", argument="p")) == "p: 1.5 is not a probability"
    assert str(UserError("no rows")) == "no rows"
    with pytest.raises(ValueError, match="^intermediate.max_length: 600 is too long$"), about("intermediate"):
        raise UserError("600 is too long", argument="max_length")
    with pytest.raises(ValueError, match="^teacher: no such file$"), about("teacher"):
        raise UserError("no such file")
    copied = pickle.loads(pickle.dumps(UserError("not installed", "p", "nlp_id")))
    assert (str(copied), copied.package) == ("p: not installed", "nlp_id")


@pytest.mark.parametrize("name", ["runs/a/options.json", None])
def test_a_full_disk_is_named_as_such(name):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([name] if name else []))
    text = str(to_user_error(error))
    assert text.startswith(f"no space left to write {name or 'a file of the run'}: free some"), text


@pytest.mark.parametrize(
    "argument, stage_type, option",
    [
        ("p", "augment", "augmentation.p"),
        ("layer_map", "general", "general.layer_map"),
        ("max_length", "teacher", "tuning.max_length"),
        ("prediction.max_length", "check", "prediction.max_length"),
        ("masked_lm-corpus-txt.max_length", "check", "masked_lm.max_length"),
        ("micro_batch", "intermediate", "job.micro_batch"),
        ("layers", "intermediate", "architecture.layers"),
        ("teacher_labels", "teacher", "teacher_labels"),
        ("metric", "", "metric"),
        ("student.init", "student", "student.init"),
    ],
)
def test_the_command_line_names_the_option(argument, stage_type, option):
    assert str(explain(UserError("bad", argument), stage_type)) == f"{option}: bad"
