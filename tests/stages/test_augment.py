"""What the stage `augment` needs on each host."""

import socket

import nltk
import pytest
import torch

from checkpoints.errors import UserError
from stages.augment import run
from stages.training.options import Job
from stages.training.stage import Stage
from tests.data_aug.test_replaceable_words import nltk_data  # noqa: F401 (a fixture)


@pytest.fixture
def begin(tmp_path):
    """Begins the stage, which has nothing but WordNet."""

    def begin(version: str = "3.0", download: bool = False) -> None:
        synonyms = {"source": "wordnet", "version": version, "download": download}
        run(Stage("augment", "augment", tmp_path, {}, {"synonyms": synonyms}, "", Job(), torch.device("cpu")))

    return begin


def test_a_host_without_wordnet_is_named_before_any_work(nltk_data, monkeypatch, begin):  # noqa: F811
    monkeypatch.setattr(nltk.data, "path", [str(nltk_data / "none")])
    with pytest.raises(
        UserError, match=f"^synonyms: host {socket.gethostname()}: nltk's data of WordNet is not"
    ):
        begin()

    def download(name: str, quiet: bool) -> bool:
        nltk.data.path.append(str(nltk_data))
        return True

    monkeypatch.setattr(nltk, "download", download)
    with pytest.raises(KeyError, match="task"):  # it has gone on to the rows
        begin(download=True)


def test_a_host_with_another_wordnet_is_refused(nltk_data, begin):  # noqa: F811
    with pytest.raises(UserError, match="has WordNet 3.0, the run began with 3.1; give all hosts the same"):
        begin("3.1")
