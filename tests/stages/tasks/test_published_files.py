"""Files as people publish them: read to the right values, or refused in one line. docs/files.md is their table."""

import re

import pytest

from checkpoints.errors import UserError
from tests.stages.tasks.published_files import CASES, PAGE, page, read


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_a_file_is_read_as_its_author_means_it(tmp_path, case):
    if case.rows is None:
        with pytest.raises(UserError, match=case.refused) as caught:
            read(case, tmp_path)
        assert "\n" not in str(caught.value)
        return
    rows, notes = read(case, tmp_path)
    assert sorted(rows) == sorted(case.rows)
    assert not case.said or any(re.search(case.said, note) for note in notes), notes


def test_the_page_has_what_happens():
    assert page() == PAGE.read_text(encoding="utf-8"), (
        "python -m tests.stages.tasks.published_files writes it"
    )
