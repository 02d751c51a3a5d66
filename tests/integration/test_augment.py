"""Augmentation as a stage: the same rows whatever happens, and students that learn from them."""

import json
import shutil

import pytest

from data_aug import augment
from data_aug.variants import SHARD_ROWS, read_shard
from stages.tasks.text import folded
from tests.conftest import make_corpus, make_task, sentences
from tests.integration.test_commands import refused

VECTORS = "warm 1 0 0\ngreat 0.9 0.1 0\nlaugh 0 1 0\ndull 0 0.9 0.2\nunseen 0.8 0.1 0.1\n"
AUGMENTED = [
    "augmentation.vectors=vectors.txt", "augmentation.variants=3", "masked_lm.epochs=2",
    "masked_lm.batch_size=8", "masked_lm.max_length=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def given(place) -> list[str]:
    """Arguments of a task of several shards, with word vectors."""
    (place.path / "vectors.txt").write_text(VECTORS)
    make_corpus(place.path / "large.txt", 60)  # some of it is held out
    make_task(place.path / "many", rows=3 * SHARD_ROWS)
    return ["data=many", "task=many", "corpus=large.txt", *AUGMENTED]


@pytest.fixture
def german(place, monkeypatch) -> None:
    """nltk's data has German stop words, two words of the task, and no WordNet."""
    words = place.path / "nltk_data" / "corpora" / "stopwords" / "german"
    words.parent.mkdir(parents=True, exist_ok=True)
    words.write_text("warm\ngreat\n")
    monkeypatch.setenv("NLTK_DATA", str(place.path / "nltk_data"))


def rows_of(place, run: str) -> list[list]:
    """The columns of every shard of a run, in order."""
    shards = sorted((place.path / "runs" / run / "augment" / "model").glob("rows-*.arrow"))
    return [list(read_shard(path)) for path in shards]


def test_one_rank_two_ranks_and_a_killed_run_make_the_same_rows(place, given):
    status, output = place.run("augment", "run=aug", *given)
    assert status == 0 and "predicted right (head fitted)" in output and "variants of" in output, output
    assert "original" in output and "datasets.Dataset.from_file" in output
    whole = rows_of(place, "aug")
    assert len(whole) == 3 and all(len(set(map(len, shard[2:]))) == 1 for shard in whole)
    text_a, text_b, labels, rows, variants = whole[0]
    assert text_b is None and variants[0] == 0 and max(variants) > 1
    for row in set(rows):
        mine = [i for i in range(len(rows)) if rows[i] == row]
        assert len({labels[i] for i in mine}) == 1 and len({text_a[i] for i in mine}) == len(mine)

    # The rows from Python are the same, but for those of dev, which the stage drops.
    made = [[text for text, row in zip(shard[0], shard[3], strict=True) if row == number]
            for shard in whole for number in sorted(set(shard[3]))]  # fmt: skip
    dev = {folded(line.rpartition(",")[0]) for line in (place.path / "many/dev.csv").read_text().splitlines()}
    model = place.path / "runs" / "aug" / "masked_lm" / "model"
    rows = augment([row[0] for row in made], model, variants=3, vectors=place.path / "vectors.txt")
    assert [[text for text in row if folded(text) not in dev] for row in rows] == made

    # Dropout depends on the number of ranks while a head is fitted: the fitted one is given.
    fitted = "augmentation.masked_lm=runs/aug/masked_lm/model"
    same = (*given, fitted, "reuse=false")
    status, output = place.run("augment", "run=aug2", "job.nproc=2", *same)
    assert status == 0 and rows_of(place, "aug2") == whole, output

    shards = place.path / "runs" / "augkilled" / "augment" / "checkpoints"
    place.kill_during("augkilled", "augment", *same, command="augment")
    made = sorted(shards.glob("step-*/rows.arrow"))
    times = {path: path.stat().st_mtime_ns for path in made[:1]}
    if len(made) > 1:
        made[1].write_bytes(made[1].read_bytes()[:-9])  # torn: it is made again
    inode = made[0].stat().st_ino
    status, output = place.run("augment", "run=augkilled", *same)
    assert status == 0 and "resumed: " in output and rows_of(place, "augkilled") == whole, output
    kept = shards.parent / "model" / "rows-00000000.arrow"
    assert kept.stat().st_ino == inode and kept.stat().st_mtime_ns == times[made[0]]


def test_stop_words_of_another_language_are_never_replaced(place, given, german):
    def kept() -> set[str]:
        """What stands in the variants where the original has one of the words."""
        found = set()
        for texts, _, _, _, variants in rows_of(place, "german"):
            for text, variant in zip(texts, variants, strict=True):
                if not variant:
                    original = text.split()
                pairs = zip(original, text.split(), strict=True)
                found |= {new for old, new in pairs if old in ("warm", "great")}
        return found

    some = ("augment", "run=german", *given, "augmentation.p=1")
    assert place.run(*some)[0] == 0 and len(kept()) > 2
    status, output = place.run(*some, "augmentation.language=German")
    assert status == 0 and "augment's stop_words" in output and "[masked_lm] starts" not in output, output
    assert kept() == {"warm", "great"}


@pytest.mark.parametrize("zero", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_while_it_is_fitted_a_masked_lm_ends_in_the_same_weights(place, given, zero):
    same = (*given, "reuse=false", f"job.zero={zero}", "job.nproc=2", "augmentation.variants=1")
    status, output = place.run("augment", *same, f"run=fit{zero}")
    assert status == 0 and "(head fitted)" in output, output
    rows = rows_of(place, f"fit{zero}")
    shutil.rmtree(place.path / "runs" / f"fit{zero}" / "augment")
    place.resumes(f"fit{zero}", ("masked_lm",), *same, command="augment")
    assert rows_of(place, f"fit{zero}") == rows


@pytest.mark.slow
def test_a_student_is_distilled_from_augmented_rows_and_nothing_is_made_twice(place, given):
    arguments = ("run=augtask", "augment=true", *AUGMENTED)
    status, output = place.run("task-distill", *arguments)
    assert status == 0 and "x up to 4 variants" in output, output
    finished = json.loads((place.path / "runs/augtask/augment/finished.json").read_text())["scores"]
    lines = (place.path / "runs/augtask/intermediate/metrics.jsonl").read_text().splitlines()
    steps = max(json.loads(line)["step"] for line in lines)
    assert steps == 2 * -(-(finished["variants"] + finished["sentences"]) // 8)
    status, output = place.run("task-distill", *arguments)
    assert status == 0 and "starts" not in output, output
    status, output = place.run("task-distill", *arguments, "augmentation.p=0.9")
    started = [line.split("]")[0].strip("[") for line in output.splitlines() if "starts" in line]
    assert started == ["augment", "intermediate", "prediction", "evaluate"], output
    status, output = place.run("task-distill", "run=augtask", *AUGMENTED)
    assert status == 0 and "[augment]" not in output, output
    assert (
        "intermediate's augmented is gone" in output
    )  # made again, or taken from another test's run of equal inputs


def test_pairs_with_scores_and_a_given_masked_lm_without_vectors(place, given):
    lines = [
        json.dumps({"one": a, "two": b, "score": round(i / 7, 3)})
        for i, ((a, _), (b, _)) in enumerate(zip(sentences(40, 3), sentences(40, 4), strict=True))
    ]
    (place.path / "scored").mkdir()
    (place.path / "scored" / "train.jsonl").write_text("\n".join(lines[:30]))
    (place.path / "scored" / "dev.jsonl").write_text("\n".join(lines[30:]))
    (place.path / "scored.yaml").write_text(
        "train: scored/train.jsonl\ndev: scored/dev.jsonl\ntext: [one, two]\nlabel: score\ntype: regression\n"
    )
    fitted = place.run("augment", "run=fitted", "task=scored.yaml", "data=", "text_columns=", "label_column=",
                       *AUGMENTED, "augmentation.vectors=none", "reuse=false")  # fmt: skip
    assert fitted[0] == 0, fitted[1]
    status, output = place.run(
        "task-distill", "run=scored", "task=scored.yaml", "data=", "text_columns=", "label_column=",
        "corpus=large.txt", "augment=true", "augmentation.masked_lm=runs/fitted/masked_lm/model", *AUGMENTED,
        "augmentation.vectors=none", "augmentation.repredict=true",
    )  # fmt: skip
    assert status == 0 and "step" not in output.split("[masked_lm]")[1].split("[augment]")[0], output
    for text_a, text_b, labels, rows, _ in rows_of(place, "scored"):
        first = {row: i for i, row in reversed(list(enumerate(rows)))}
        for i, row in enumerate(rows):
            changed = (text_a[i] != text_a[first[row]], text_b[i] != text_b[first[row]])
            assert changed != (True, True) and labels[i] == round(row / 7, 3)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["corpus="], ["corpus: ", "no masked-LM head"]),
        (["augmentation.vectors=nosuch.txt"], ["nosuch.txt"]),
        (["augmentation.vectors=ragged.txt"], ["ragged.txt, line 2: 1 values, line 1 has 3"]),
        (["augmentation.masked_lm=./nosuch"], ["augmentation.masked_lm", "nosuch"]),
        (["augmentation.p=2"], ["augmentation.p=2"]),
        (
            ["augmentation.language=klingon"],
            ["augmentation.language: 'klingon': nltk has no stop words", "german"],
        ),
        (
            ["augmentation.synonyms=wordnet"],
            ["augmentation.synonyms: nltk's data of WordNet is not on", "nltk.downl"],
        ),
        (["augmentation.synonyms=roget"], ["augmentation.synonyms", "wordnet"]),
        (["augmentation.repredict=true", "augmentation.masks_per_pass=4"], ["masks_per_pass=1"]),
    ],
    ids=lambda value: value[-1] if "=" in value[0] else "",
)
def test_bad_input_is_one_clear_line(place, given, arguments, words, german):
    (place.path / "ragged.txt").write_text("warm 1 0 0\ngreat 1\n")
    refused(place, "augment", "run=bad", *given, *arguments, words=words)


def test_a_text_too_long_for_the_masked_lm_is_kept_or_refused(place, given):
    (place.path / "too-long").mkdir(exist_ok=True)
    for name, more in (("train", "good film " * 20 + ",fresh\n"), ("dev", "")):
        text = (place.path / "data" / f"{name}.csv").read_text()
        (place.path / "too-long" / f"{name}.csv").write_text(text + more)
    arguments = ("task=long", "data=too-long", "run=too-long", *AUGMENTED)
    status, output = place.run("augment", *arguments)
    assert status == 0 and "too long for the masked LM: 1" in output, output
    words = ["augmentation.long_texts: ", "keep", "tokens", "64"]
    refused(place, "augment", *arguments, "augmentation.long_texts=refuse", words=words)
