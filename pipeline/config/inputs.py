"""What a run is given: teacher, student, task, corpus, masked LM and vectors are found and identified here.

`task_stages`, `augment_stages` and `general_stages` declare the runs of the commands.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from checkpoints.errors import UserError, about, check_file
from checkpoints.fingerprint import FileHashes
from checkpoints.store import read_json
from data_aug.replaceable_words import Synonyms, stop_words
from pipeline.config.run_options import Options, check_run, without_student
from pipeline.config.two_stage import (
    Entry,
    Given,
    RunSpec,
    StageSpec,
    augmentation,
    check,
    general,
    two_stage,
    vocabulary,
)
from pipeline.deploy.hub import config_file, pin
from pipeline.plan import RUNS, made_in
from stages.tasks.corpus import find_corpus
from stages.tasks.packages import packaged_config, packaged_student, packaged_teacher, packaged_vectors
from stages.tasks.readers.glue import unlabelled_files
from stages.tasks.task import TaskSource, find_task
from stages.training.options import PROJECTIONS_FILE

PACKAGED = "give a local directory, or teacher=packaged, which needs no hub"
MASKED_LM = "give a local directory, or leave it empty for the teacher with a head fitted to it"
MODELS: dict[str, Callable[[], Path]] = {
    "packaged": packaged_teacher,
    "packaged-convnet": partial(packaged_config, "convnet"),
    "packaged-han": partial(packaged_config, "graph_teachers/han"),
    "packaged-rgcn": partial(packaged_config, "graph_teachers/rgcn"),
    "packaged-strip-reader": partial(packaged_config, "strip_reader"),
    "packaged-two-streams": partial(packaged_config, "two_streams"),
}
"""Models that come in packages or with the project, by the names that options have for them."""

STUDENT = "give a local directory, packaged, or nothing (ARGS=student=) to make one"


def task_stages(options: Options) -> RunSpec:
    """From the given teacher to the evaluated student."""
    task = given_task(options)

    def declare(run: Path) -> list[StageSpec]:
        given = given_teacher_and_task(options, task, run)
        if options.student and options.student != "teacher-layers":
            given.student = given_student(options.student, run)
            if options.intermediate.projection_init == "general":
                _check_projections(given.student)
        if options.augment:
            _add_augmentation(given, options, run)
        if not options.student or options.augment and options.corpus and not given.masked_lm_has_head:
            given.corpora["corpus"] = given_corpus(options.corpus, run)
        if unlabelled := unlabelled_files(TaskSource.of(task)):
            given.unlabelled = _data({"name": task["name"], "identity": {"files": unlabelled}}, run)
        return two_stage(options, given)

    return RunSpec(options.run or f"{Path(options.preset).stem}-{task['name']}", declare)


def augment_stages(options: Options) -> RunSpec:
    """The run that augments rows."""
    task = given_task(options)

    def declare(run: Path) -> list[StageSpec]:
        given = given_teacher_and_task(options, task, run)
        _add_augmentation(given, options, run)
        if options.corpus and not given.masked_lm_has_head:
            given.corpora["corpus"] = given_corpus(options.corpus, run)
        return augmentation(options, given)

    return RunSpec(options.run or f"{Path(options.preset).stem}-{task['name']}", declare)


def general_stages(options: Options) -> RunSpec:
    """The general student."""
    options = without_student(options, "general-distill makes a student")
    refuse_answers(options, "a general student learns")

    def declare(run: Path) -> list[StageSpec]:
        corpora = {"corpus": given_corpus(options.corpus, run)}
        given = Given(_given_encoder(options, run), corpora=corpora)
        return [
            check(options, given, only_general=True),
            *vocabulary(options, given),
            general(options, given),
        ]

    return RunSpec(options.run or Path(options.preset).stem, declare)


def given_teacher_and_task(options: Options, task: Entry, run: Path) -> Given:
    """The teacher and the task."""
    return Given(_given_encoder(options, run), _data(task, run))


def _given_encoder(options: Options, run: Path) -> Entry:
    """The teacher of the layers: as given, or beside a table of answers."""
    return _model(options.encoder, "answers.encoder" if options.by_answers else "teacher", PACKAGED, run)


def refuse_answers(options: Options, who: str) -> None:
    """Refuse a teacher that is a file, of answers or anything else, for a command that needs a model."""
    if options.by_answers:
        raise UserError(
            f"{options.teacher!r} is a file, and {who} from a model; give a directory or a name on the hub",
            argument="teacher",
        )


def given_corpus(name: str, run: Path) -> Entry:
    """A corpus."""
    return _data(find_corpus(name).entry, run)


def given_task(options: Options) -> Entry:
    """Where the task's rows come from."""
    if not options.task:
        raise UserError("which task? give task=NAME: a GLUE task, rotten-tomatoes, "
                        "a task file, or a name of your own with data=FILE")  # fmt: skip
    entry = find_task(
        options.task, options.data, tuple(options.text_columns), options.label_column, options.metric,
        labels=tuple(options.labels), positive_label=options.positive_label, unfit_rows=options.unfit_rows,
        encoding=options.encoding, delimiter=options.delimiter, label_columns=tuple(options.label_columns),
        label_separator=options.label_separator, columns=tuple(options.columns), windows=options.windows,
        spans_column=options.spans_column, tag_scheme=options.tag_scheme,
        answers=options.teacher if options.by_answers else "",
    ).entry  # fmt: skip
    return _some_rows(entry, options.rows, options.seed)


def given_other_task(name: str, data: str, rows: int, seed: int, run: Path) -> Entry:
    """Where the rows of a task that a recipe's student learns in place of the recipe's own come from; at most `rows`, drawn from the seed."""
    return _data(_some_rows(find_task(name, data).entry, rows, seed), run)


def _some_rows(entry: Entry, rows: int, seed: int) -> Entry:
    """The entry of a task, of whose training rows at most `rows` are used; 0: all."""
    if rows:
        entry["identity"]["rows"] = [rows, seed]
    return entry


def _add_augmentation(given: Given, options: Options, run: Path) -> None:
    """Add the masked language model, the word vectors, and what nltk's data has, if they are asked for."""
    if options.augmentation.masked_lm:
        given.masked_lm = _model(options.augmentation.masked_lm, "augmentation.masked_lm", MASKED_LM, run)
    given.masked_lm_has_head = _has_masked_lm_head(given.masked_lm or given.teacher)
    given.vectors = given_vectors(options)
    language, download = options.augmentation.language.lower(), options.augmentation.nltk_download
    with about("augmentation"):
        if language != "english":
            given.stop_words = {"language": language, "content": sorted(stop_words(language, download))}
        if options.augmentation.synonyms == "wordnet":
            version = Synonyms(language, download).version
            given.synonyms = {"source": "wordnet", "version": version, "download": download}


def _has_masked_lm_head(model: Entry) -> bool:
    """Whether a model's config.json names a class with a masked-LM head, so that no text is needed to fit one."""
    names = read_json(config_file(model)).get("architectures") or ()
    return any(name.endswith("ForMaskedLM") or name == "BertForPreTraining" for name in names)


def given_vectors(options: Options) -> Entry | None:
    """The word vectors, or None."""
    vectors = options.augmentation.vectors
    if vectors in ("", "none"):
        return None
    path = packaged_vectors() if vectors == "packaged" else Path(os.path.expanduser(vectors))
    if vectors != "packaged":
        check_file(path, "give a GloVe text file, packaged or none", "augmentation.vectors")
    return _hashed({"path": str(path.resolve())})


def given_student(name: str, run: Path) -> Entry:
    """The packaged general student, one of the user's, or with run:NAME that of another run.

    A run of `general-distill` gives its general student; any other run gives the student that its report is about.

    Raises:
        UserError: there is no such run, it is not finished, or it is this one.
    """
    if name == "packaged":
        return _hashed({"path": str(packaged_student())})
    if not name.startswith("run:"):
        return _model(name, "student", STUDENT, run)
    other = name.removeprefix("run:")
    check_run(other)
    directory = RUNS / other
    if not (directory / "options.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in RUNS.glob("*/results.json"))) or "none yet"
        raise UserError(f"student={name}: there is no run {other!r} under {RUNS}/; finished are {known}")
    if read_json(directory / "options.json").get("stages", [])[-1:] == ["general"]:
        stage = "general"
    else:
        spec = read_json(directory / "evaluate" / "stage.json")
        stage = spec.get("inputs", {}).get(spec.get("options", {}).get("student", ""), {}).get("stage", "")
    model = made_in(directory / stage) / "model"
    if not stage or not (model / "config.json").is_file():
        raise UserError(
            f"student={name}: run {other!r} has no student yet; run its own command again to resume it"
        )
    if directory == run:
        raise UserError(f"student={name} is the student of this run itself; give another run=NAME")
    return _hashed({"path": str(model.resolve())})


def _check_projections(student: Entry) -> None:
    """Refuse a local student beside which no general stage left its projections, such as one that has learned a task."""
    path = Path(student.get("path", ""))
    if "path" in student and not (path / PROJECTIONS_FILE).is_file():
        raise UserError(
            f"'general' needs a {PROJECTIONS_FILE}, as general-distill writes it, and {path} has none; "
            "leave the option out",
            argument="intermediate.projection_init",
        )


def _model(name: str, what: str, instead: str, run: Path) -> Entry:
    """A model: a local directory by its contents, one of the hub by its revision."""
    path = MODELS[name]() if name in MODELS else Path(os.path.expanduser(name))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{what}={path} holds no config.json: give the directory of a Hugging Face model")
        return _hashed({"path": str(path.resolve())})
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(f"{what}={name}: there is no such directory; {instead}")
    return pin(name, "model", instead, run)


def _data(source: Entry, run: Path) -> Entry:
    """A data source: files by their contents, a hub data set by its revision."""
    if "hub" in source["identity"]:
        instead = "give data=DIRECTORY (tasks) or corpus=FILES, or the packaged ones"
        source = source | {"revision": pin(source["identity"]["hub"], "dataset", instead, run)["revision"]}
    return _hashed(source)


def _hashed(source: Entry) -> Entry:
    """Add to an input the hash of its files' contents, which represents them in fingerprints.

    Raises:
        UserError: a file is missing or not readable.
    """
    hashes = FileHashes(RUNS / ".cache" / "hashes.json")
    try:
        if "path" in source:
            path = Path(source["path"])
            return source | {"content": hashes.of_model(path) if path.is_dir() else hashes.of(path)}
        files = source.get("identity", {}).get("files")
        if files:
            return source | {"content": {role: hashes.of(Path(path)) for role, path in sorted(files.items())}}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read or written: {error.strerror}") from error
    return source
