"""Models and tokenizers as people publish them: read as stock transformers reads them, or refused in one line."""

import pytest

from tests.pipeline.deploy.published_models import HEAD, KINDS, PAGE, outcome


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_a_model_is_read_as_its_own_tokenizer_and_config_say(tmp_path, kind):
    """In rows, evaluation, predict, export and ONNX: `outcome` compares them."""
    found = outcome(kind, tmp_path)
    assert (
        found.startswith("| refused: ") == bool(kind.refused) and kind.refused in found and "\n" not in found
    )
    assert f"| {kind.what} | {found} |" in PAGE.read_text(encoding="utf-8").splitlines(), (
        "python -m tests.pipeline.deploy.published_models writes it"
    )


def test_the_table_has_no_other_lines():
    assert PAGE.read_text(encoding="utf-8").startswith(HEAD)
    lines = PAGE.read_text(encoding="utf-8").removeprefix(HEAD).splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"| {kind.what}" for kind in KINDS]
