"""Data that changes or tears under a run, and runs that share a cache or a directory."""

import os
import shutil
import signal
import socket
import time

import pytest


def test_a_damaged_or_half_written_cache_is_found_and_made_again(place):
    status, output = place.run("task-distill", "run=cached", "reuse=false")
    assert status == 0, output
    weights, cache = place.weights("cached"), place.path / "runs" / ".cache"
    for number, path in enumerate(sorted(cache.glob("rows-*/tokens.bin"))):
        content = bytearray(path.read_bytes())
        if number % 2:
            content[-3] ^= 1
        else:
            del content[-3:]
        path.write_bytes(content)
    (cache / ".writing-rows-0123").mkdir()  # what a killed process leaves
    shutil.rmtree(place.path / "runs" / "cached")
    status, output = place.run("task-distill", "run=cached", "reuse=false")
    assert status == 0 and "tokenized data is damaged" in output and "made again" in output, output
    assert place.weights("cached") == weights


def test_changed_data_is_refused_under_a_half_done_stage_and_made_again_under_a_finished_one(place):
    data = place.path / "changing"
    shutil.copytree(place.path / "data", data)
    given = ("data=changing", "reuse=false")
    place.kill_during("changing", "intermediate", *given)
    train = data / "train.csv"
    train.write_text(train.read_text() + "a good new film,fresh\n")
    status, output = place.run("task-distill", "run=changing", *given)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert status == 2 and len(errors) == 1, output
    assert "half done" in errors[0] and "restart=true" in errors[0] and "changed" in errors[0], output
    status, output = place.run("task-distill", "run=changing", *given, "restart=true")
    assert status == 0 and "[general] starts" not in output, output
    train.write_text(train.read_text() + "a bad new film,rotten\n")
    status, output = place.run("task-distill", "run=changing", *given)
    assert status == 0 and "again: teacher's task" in output and "[general] starts" not in output, output


def test_two_runs_at_once_share_a_cache(place):
    shutil.rmtree(place.path / "runs" / ".cache", ignore_errors=True)
    processes = [place.start("task-distill", f"run=side-{side}", "reuse=false") for side in "ab"]
    for process in processes:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    assert place.weights("side-a") == place.weights("side-b")


def test_runs_that_begin_together_make_a_stage_that_they_share_once(place):
    given = ("seed=7", "tuning.epochs=1")
    processes = [
        place.start("task-distill", f"run=twin-{epochs}", f"prediction.epochs={epochs}", *given)
        for epochs in (1, 2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    starts = {stage: sum(f"[{stage}] starts" in output for output in outputs)
              for stage in ("teacher", "general", "intermediate", "prediction")}  # fmt: skip
    assert starts == {"teacher": 1, "general": 1, "intermediate": 1, "prediction": 2}, outputs
    for output, other in zip(outputs, (2, 1), strict=True):
        assert all(f"waits for run twin-{other}, which makes the same stage" in line
                   for line in output.splitlines() if "] waits" in line), output  # fmt: skip
    assert any("] waits" in output for output in outputs)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_second_process_is_refused_with_the_owner_and_a_dead_ones_lock_is_taken(place, number):
    given = (f"run=locked{number}", "reuse=false")
    process = place.start("general-distill", *given, "general.epochs=40")
    lines = place.path / "runs" / f"locked{number}" / "general" / "metrics.jsonl"
    while process.poll() is None and not lines.exists():
        time.sleep(0.05)
    status, output = place.run("general-distill", *given)
    assert status == 2 and f"process {process.pid} on {socket.gethostname()}" in output, output
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    status, output = place.run("general-distill", *given, "restart=true")
    assert status == 0 and "in use by" not in output, output
