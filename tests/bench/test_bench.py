"""The measuring itself: sides in turn, medians, the limit, the plot, and texts of the stated lengths."""

import re
from types import SimpleNamespace

import pytest
import torch

from tests.bench import __main__ as bench
from tests.bench.__main__ import draw, measure, table_line
from tests.bench.attention import attention_memory
from tests.bench.machine import Machine
from tests.bench.work import Work

MACHINE = Machine("a machine", 2, "", "", 0.0, {"fp32": 1e9, "bf16": 2e9}, 1e9)


def test_sides_take_turns_and_medians_are_compared(tmp_path):
    called, speeds = [], {"reference": [9, 2, 4, 3], "ours": [9, 20, 10, 60]}

    def side(name):
        def run(repeat):
            called.append((name, repeat))
            return speeds[name][repeat + 1]

        return run

    work = Work("a", "rows/s", 5, side("reference"), side("ours"), lambda machine: 40.0, lambda: True)
    line = measure(work, MACHINE, 3)
    assert called == [(name, repeat) for repeat in (-1, 0, 1, 2) for name in ("reference", "ours")]
    assert (line["reference"], line["ours"]) == (3, 20)
    assert line["ratio"] == pytest.approx(20 / 3)
    assert line["spread"] == [2.5, 20]
    assert line["limit_fraction"] == 0.5
    assert line["agrees"] is True
    assert "6.67" in table_line(line)
    draw([line, line | {"less_is_better": True, "ratio": 0.1}], MACHINE, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_limit_is_that_of_operations_or_of_bytes():
    assert MACHINE.seconds(4e9, 1e9, "bf16") == 2
    assert MACHINE.seconds(4e9, 9e9, "bf16") == 9


@pytest.mark.parametrize(("name", "device"), [("CPU", "cpu"), ("GPU", "cuda")])
def test_help_names_the_works_of_each_device(name, device):
    named = re.search(rf"Works on a {name}: ([^.]+)\.", bench.__doc__)
    works = bench.works_of(SimpleNamespace(device=torch.device(device)))
    assert re.split(r",\s+", named[1]) == [work.name for work in works]


def test_memory_of_the_attention_loss():
    work = attention_memory(length=512)
    maps, traces = work.reference(0), work.ours(0)
    assert maps >= 4 * 12 * 512**2 * 4 / 1e6  # four maps at once
    assert traces < 0.1 * maps
    assert work.agrees()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "mean", "texts"), [("sst-2", 13.5, 1), ("mrpc", 53.3, 2)])
def test_texts_have_the_stated_lengths(task, mean, texts, tmp_path):
    from tests.bench.place import Place

    place = Place(tmp_path, None, torch.device("cpu"))
    rows = place.texts(task, 500, 0)
    assert {len(row) for row in rows} == {texts}
    assert place.padded(rows, 128)[1].sum().item() / 500 == pytest.approx(mean, rel=0.06)
    assert rows != place.texts(task, 500, 1)
