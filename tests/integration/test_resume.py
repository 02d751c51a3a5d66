"""Whatever kills a run, the same command finishes it, with the weights of an undisturbed run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import sentences
from tests.integration.conftest import EACH_STEP, ROOT, workers_of

STAGES = ["teacher", "general", "intermediate", "prediction", "finetuned", "finetuned_general"]


@pytest.fixture(scope="module")
def whole(place) -> str:
    """An undisturbed run."""
    status, output = place.run("task-distill", "run=whole", "reuse=false")
    assert status == 0, output
    return "whole"


@pytest.mark.parametrize(
    ("ranks", "own_processes", "stages"),
    [(2, False, STAGES), pytest.param(1, True, ("general", "prediction"), marks=pytest.mark.slow)],
    ids=["two ranks", "processes of their own"],
)
def test_killed_in_every_stage_a_run_ends_in_the_same_weights(
    place, started_place, ranks, own_processes, stages
):
    place = started_place if own_processes else place
    same = (f"job.nproc={ranks}", "reuse=false", "baselines=true")
    status, output = place.run("task-distill", f"run=whole{ranks}", *same)
    assert status == 0, output
    for stage in stages:
        place.kill_during(f"killed{ranks}", stage, *same)
    status, output = place.run("task-distill", f"run=killed{ranks}", *same)
    assert status == 0 and "resumed at step" in output, output
    weights = place.weights(f"whole{ranks}")
    assert set(weights) == set(STAGES)
    assert place.weights(f"killed{ranks}") == weights
    assert place.metrics(f"killed{ranks}") == place.metrics(f"whole{ranks}")
    for name in ("results.json", "dev_predictions.csv"):
        assert (place.path / "runs" / f"killed{ranks}" / name).exists()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_workers_that_are_forks_compute_what_processes_of_their_own_do(place, ranks):
    same = ("reuse=false", "general.epochs=20", "job.precision=bf16", f"job.nproc={ranks}")
    own, forked = f"own{ranks}", f"forked{ranks}"
    place.kill_during(own, "general", *same, command="general-distill")
    stage = place.path / "runs" / own / "general"
    for checkpoint in (stage / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    processes = [sys.executable, "-m", "pipeline.launch.local_ranks", str(stage), str(ranks)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(processes, cwd=place.path, env=environment, check=True, timeout=120)
    status, output = place.run("general-distill", f"run={forked}", *same)
    assert status == 0, output
    assert place.weights(own) == place.weights(forked)


@pytest.mark.parametrize(
    ("number", "own_processes"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_saves_says_so_and_leaves_the_run_resumable(place, started_place, number, own_processes):
    run, same = f"stopped-{number.value}", ("job.checkpoint_seconds=1000", "general.epochs=6", "reuse=false")
    lines = place.path / "runs" / run / "general" / "metrics.jsonl"

    def going() -> bool:
        return lines.exists() and '"step": 2,' in lines.read_text()

    signalled = started_place if own_processes else place
    status, output = signalled.interrupt(going, number, "general-distill", f"run={run}", *same)
    assert status == 128 + number and "saved at step" in output and "same command" in output, output
    status, output = place.run("general-distill", f"run={run}", *same)
    assert status == 0 and "resumed at step" in output, output
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "seconds"), [("check", 0.2), ("check", 1.5), ("general", 0), ("general", 0.2)]
)
def test_ctrl_c_while_a_stage_starts_up_ends_it_at_once(started_place, stage, seconds):
    """An exception raised then may be lost in an import, and the stage would go on to its end."""
    run = started_place.path / "runs" / f"early-{stage}{seconds}"
    process = started_place.start("general-distill", f"run={run.name}", "general.epochs=2000", "reuse=false")
    while process.poll() is None and not (run / stage / "stage.json").exists():
        time.sleep(0.02)
    time.sleep(seconds)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "Traceback" not in output and time.monotonic() - began < 10, output


def test_a_finished_run_is_skipped_in_about_a_second_and_a_changed_option_makes_only_what_depends_on_it(
    place, started_place, whole
):
    before = os.times()
    status, output = started_place.run("task-distill", f"run={whole}")
    seconds = sum(os.times()[2:4]) - sum(before[2:4])  # of a processor: the machine may be busy
    assert status == 0 and "starts" not in output and seconds < 5, output
    status, output = place.run("task-distill", "run=again")
    assert status == 0 and "reused from another run" in output and "[teacher] starts" not in output, output
    status, output = place.run("task-distill", "run=again", "prediction.epochs=1")
    assert status == 0, output
    started = [line.split("]")[0].strip("[") for line in output.splitlines() if "starts" in line]
    assert started == ["check", "prediction", "evaluate"]
    assert "prediction.epochs was 2, is 1" in output


def test_a_half_done_stage_with_other_options_is_refused_and_restart_begins_it_anew(place):
    place.kill_during("half", "general", "reuse=false", command="general-distill")
    changed = ("general-distill", "run=half", "reuse=false", "general.learning_rate=2e-4")
    status, output = place.run(*changed)
    assert status == 2 and "half done" in output and "general.learning_rate was" in output, output
    assert "restart=true" in output and "Traceback" not in output
    status, output = place.run(*changed, "restart=true")
    assert status == 0 and "resumed at step" not in output, output


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(place, whole):
    place.kill_during("torn", "intermediate", "reuse=false")
    checkpoints = sorted((place.path / "runs/torn/intermediate/checkpoints").glob("step-*"))
    newest = next(checkpoints[-1].glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    status, output = place.run("task-distill", "run=torn", "reuse=false")
    assert status == 0, output
    assert f"checkpoint {checkpoints[-1].name} is damaged" in output and newest.name in output
    assert place.weights("torn") == place.weights(whole)


@pytest.mark.parametrize("victim", [0, -1], ids=["their parent", "a rank"])
def test_one_process_killed_ends_the_others_with_the_reason_and_the_run_goes_on(place, victim):
    run = place.path / "runs" / f"bereft{victim}"
    given = ("general-distill", f"run={run.name}", "reuse=false", "general.epochs=20", "job.nproc=2")
    process = place.start(*given, EACH_STEP)
    while process.poll() is None and not any(run.glob("general/checkpoints/step-*/manifest.json")):
        time.sleep(0.005)
    began = time.monotonic()
    os.kill(workers_of(run)[victim], signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 137 and time.monotonic() - began < 10 and not workers_of(run), output
    assert ("error: rank 1 was killed by signal 9" in output) == (victim == -1), output
    assert "if the memory ran out" in output, output
    assert "Traceback" not in output and "same command" in output, output
    status, output = place.run(*given)
    assert status == 0 and "resumed at step" in output, output


def test_a_directory_that_vanishes_under_a_stage_is_named_and_the_run_goes_on_when_it_is_back(place):
    """As where a shared disk is unmounted. The worker says so, in one line, whatever it was about to do."""
    given = ("general-distill", "run=vanishes", "reuse=false", "general.epochs=20", "job.nproc=2")
    stage = place.path / "runs" / "vanishes" / "general"
    process = place.start(*given, EACH_STEP)
    while process.poll() is None and not any(stage.glob("checkpoints/step-*/manifest.json")):
        time.sleep(0.005)
    stage.rename(stage.with_name("away"))
    output = process.communicate(timeout=60)[0]
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert process.returncode == 2 and len(errors) == 1 and "Traceback" not in output, output
    assert str(stage.relative_to(place.path)) in errors[0] and "same command again" in errors[0], output
    assert not stage.exists()
    stage.with_name("away").rename(stage)
    status, output = place.run(*given)
    assert status == 0 and "resumed at step" in output, output


def test_ranks_accumulation_and_zero_give_the_same_losses(place):
    """Dropout is off in the student of these runs, so that only rounding may differ."""
    same = ("architecture.dropout=0.0", "reuse=false")
    details = {"overlap_comm": True, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
    (place.path / "ds.json").write_text(json.dumps({"zero_optimization": details}))
    losses = {}
    for name, arguments in (
        ("one", ()),
        ("two", ("job.nproc=2",)),
        ("accumulated", ("job.micro_batch=3",)),
        ("zero2", ("job.nproc=2", "job.zero=2", "job.deepspeed=ds.json")),
        ("zero3", ("job.zero=3",)),
    ):
        status, output = place.run("general-distill", f"run=same-{name}", *same, *arguments)
        assert status == 0, output
        losses[name] = [
            line["hidden"] + line["attention"] for line in place.metrics(f"same-{name}")["general"]
        ]
    for name in ("two", "accumulated", "zero2", "zero3"):
        assert losses[name] == pytest.approx(losses["one"], rel=1e-4), name


@pytest.mark.slow
def test_a_half_done_stage_goes_on_with_other_ranks_and_zero_stages(place):
    """The losses are those of an undisturbed run within rounding, and no step is counted twice."""
    same = ("general.epochs=60", "architecture.dropout=0.0", "reuse=false", "job.checkpoint_seconds=1000")
    status, output = place.run("general-distill", "run=steady", *same)
    assert status == 0, output
    lines = place.path / "runs" / "moving" / "general" / "metrics.jsonl"
    ways = [(1, 0), (2, 1), (2, 2), (1, 1), (1, 3), (2, 3), (2, 0), (1, 0)]

    def steps() -> int:
        return lines.read_text().count("\n") if lines.exists() else 0

    for number, (ranks, zero) in enumerate(ways):
        way, before = (f"job.nproc={ranks}", f"job.zero={zero}"), steps()
        last = number == len(ways) - 1
        arguments = ("general-distill", "run=moving", *same, *way)
        status, output = (
            place.run(*arguments)
            if last
            else place.interrupt(lambda before=before: steps() > before + 2, signal.SIGTERM, *arguments)
        )
        assert status == (0 if last else 143) and ("resumed at step" in output) == (number > 0), output
    steady, moving = (place.metrics(run)["general"] for run in ("steady", "moving"))
    assert [line["step"] for line in moving] == [line["step"] for line in steady]
    for name in ("hidden", "attention"):
        expected = pytest.approx([line[name] for line in steady], rel=1e-4)
        assert [line[name] for line in moving] == expected


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_that_breaks_the_loss_is_named_and_can_be_left_out(place, ranks):
    (place.path / "broken").mkdir(exist_ok=True)
    lines = [f"{text}\tit is\t{i / 7:.3f}" for i, (text, _) in enumerate(sentences(40, 5))]
    lines[17] = (
        lines[17].split("\t")[0] + "\tit is\t1e30"
    )  # its square overflows in fp32; GLUE's scores are not standardised
    head = "sentence1\tsentence2\tscore"
    (place.path / "broken" / "train.tsv").write_text("\n".join([head, *lines]) + "\n")
    dev = ["a good film\tit is\t0.5", "a bad film\tit is\t1.5", "dull\tit is\t2.5"]
    (place.path / "broken" / "dev.tsv").write_text("\n".join([head, *dev]) + "\n")
    same = (f"run=broken{ranks}", "task=sts-b", "data=broken", "text_columns=", "label_column=",
            f"job.nproc={ranks}", "student=teacher-layers", "job.log_every=10", "reuse=false")  # fmt: skip
    status, output = place.run("task-distill", *same)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in output, output
    rows = re.search(r"its batch \(rows (.*?)\)", errors[0])[1].split(", ")
    assert "17" in rows and len(rows) == 8 and "inf" in errors[0] and "skip_bad_batches" in errors[0]
    status, output = place.run("task-distill", *same, "job.skip_bad_batches=true")
    skipped = [line for line in output.splitlines() if "left out, its loss is not finite" in line]
    assert status == 0 and all(" 17," in line or line.endswith(" 17") for line in skipped), output
    assert len(skipped) >= 2  # once an epoch of the teacher


def test_an_exploding_loss_ends_the_stage_at_its_last_good_checkpoint(place):
    wild = ("general.learning_rate=0.99", "general.clip=1e9", "general.warmup=0.0", "general.epochs=40")
    status, output = place.run("general-distill", "run=wild", "reuse=false", EACH_STEP, *wild)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert status == 2 and len(errors) == 1 and "times the first one's" in errors[0], output
    assert any((place.path / "runs/wild/general/checkpoints").glob("step-*/manifest.json"))
