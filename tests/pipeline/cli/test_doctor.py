"""What `doctor` says of a machine, of what a run needs, and of damage in a run's directory."""

import importlib.metadata
import os
import re
import shutil
import socket
from types import SimpleNamespace

import pytest

from checkpoints import store
from pipeline.cli import doctor, run_needs
from pipeline.cli.commands import COMMANDS, main, to_make
from pipeline.config import two_stage
from pipeline.config.recipe import UNUSED
from pipeline.config.run_options import load
from pipeline.run_lock import run_lock
from stages.distillation import device
from tests.conftest import make_corpus, make_encoder, make_task, tiny_config

GIVEN = ["teacher=teacher", "corpus=corpus.txt", "task=tiny", "data=data", "text_columns=text", "label_column=label",
         "architecture.layers=2", "architecture.width=8", "architecture.heads=2",
         *(f"{stage}.max_length=32" for stage in ("tuning", "general", "intermediate", "prediction"))]  # fmt: skip


@pytest.fixture
def unchecked(monkeypatch):
    """Spares a test that is about memory and disk the stage `check`."""
    monkeypatch.setattr(run_needs, "check_inputs", lambda *given: None)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with a finished and a half-done stage, and one that another run made."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "mine"
    for stage in ("teacher", "general"):
        (run / stage).mkdir(parents=True)
        store.write_json(run / stage / "stage.json", {"fingerprint": "abc"})
    with store.sealed(run / "teacher" / "model") as directory:
        (directory / "weights").write_text("weights")
    store.write_json(run / "teacher" / "finished.json", {"fingerprint": "abc"})
    for step in (5, 10):
        with store.sealed(run / "general" / "checkpoints" / store.step_name(step)) as directory:
            (directory / "state").write_text(str(step))
    (run / "taken").mkdir()
    store.write_json(run / "taken" / "finished.json", {"fingerprint": "abc", "from": "../../mine/teacher"})
    store.write_json(run / "options.json", {"run": "mine"})
    return run


def doctor_says(capsys, *arguments):
    """(exit status, lines of the report)."""
    status = main(["doctor", *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_a_healthy_run_and_the_machine(run, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, lines = doctor_says(capsys, "run=mine")
    text = "\n".join(lines)
    assert status == 0 and "WRONG" not in text and lines[-1] == "nothing is wrong"
    for what in (
        "cores",
        "precision",
        "memory",
        "disk",
        "python",
        "torch",
        "ssh",
        "hub",
    ):
        assert any(line.split()[1:2] == what.split()[:1] for line in lines), what
    assert "not tried, HF_HUB_OFFLINE is set" in text
    assert any(line.split() == ["ok", "teacher", "finished"] for line in lines)
    assert "half done at step-00000010: the same command resumes it" in text
    assert "reused from run mine" in text


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda run: (run / "teacher/model/weights").write_text("Weights"), "remove .*teacher and run the same"),
        (lambda run: (run / "teacher/model/weights").unlink(), "weights is missing"),
        (lambda run: (run / "teacher/finished.json").write_text("{"), "finished.json is incomplete.*runs the stage again"),
        (lambda run: (run / "teacher/stage.json").write_text('{"na'), "stage.json is incomplete: .*leave it"),
        (lambda run: (run / "general/stage.json").write_text(""), "stage.json is incomplete: .*restart=true"),
        (lambda run: (run / "general/checkpoints/step-00000010/state").write_text("1"), "resumes from step-00000005"),
        (lambda run: (run / "options.json").write_text("\0"), "options.json .*incomplete"),
        (lambda run: shutil.rmtree(run / "teacher"), "taken .*missing"),
    ],
)  # fmt: skip
def test_each_damage_is_named_with_its_fix(run, capsys, damage, words):
    damage(run)
    status, lines = doctor_says(capsys, "run=mine")
    wrong = [line for line in lines if line.startswith("  WRONG")]
    assert status == 1 and any(re.search(words, line) for line in wrong), lines


def test_what_an_interrupted_write_left(run, capsys):
    store.fresh_staging(run / "general" / "checkpoints" / "step-00000015")
    (run / "general" / ".stage.json.4711").touch()
    status, lines = doctor_says(capsys, "run=mine")
    text = "\n".join(lines)
    assert status == 0
    assert (
        ".writing-step-00000015, from an interrupted" in text
        and ".stage.json.4711, from an interrupted" in text
    )


def test_the_lock(run, capsys):
    def said_of_lock() -> str:
        return next(line for line in doctor_says(capsys, "run=mine")[1] if line.split()[1:2] == ["lock"])

    assert said_of_lock().endswith("free")
    with run_lock(run):
        assert (
            f"held by process {os.getpid()} on {socket.gethostname()}, which is working on the run now"
            in said_of_lock()
        )
    assert said_of_lock().endswith("free")
    (run / ".owner").write_text("process 7 on elsewhere")  # as after kill -9
    assert "free; process 7 on elsewhere did not end" in said_of_lock()
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    assert "WRONG" in said_of_lock() and ".lock: Is a directory" in said_of_lock()


def test_a_directory_that_is_no_run(run, capsys):
    (run / "options.json").unlink()
    status, lines = doctor_says(capsys, "run=mine")
    assert status == 1 and any("options.json" in line and "is no run" in line for line in lines)


def test_an_unknown_run_is_one_line(run, capsys):
    assert main(["doctor", "run=other"]) == 2
    assert "there is no run 'other' under runs/: there are mine" in capsys.readouterr().err


def test_what_a_run_needs_and_too_little_disk_and_memory(tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    make_encoder(tmp_path / "teacher")
    make_corpus(tmp_path / "corpus.txt", 12)
    make_task(tmp_path / "data")
    status, lines = doctor_says(capsys, *GIVEN)
    text = "\n".join(lines)
    assert status == 0, text
    named = [line.split()[1] for line in lines if "M parameters" in line]
    assert named == ["teacher", "general", "intermediate", "prediction"]
    assert not list((tmp_path / "runs").glob("[!.]*"))  # looking makes no run
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=9, used=9, free=1000))
    monkeypatch.setattr(run_needs, "memory", lambda: (2e6, 1e6))
    status, lines = doctor_says(capsys, *GIVEN)
    wrong = [line for line in lines if line.startswith("  WRONG")]
    assert status == 1 and len(wrong) == 2 and all(": free " in line for line in wrong)
    assert [line.split()[1] for line in wrong] == ["memory", "disk"]
    status, lines = doctor_says(capsys, *GIVEN, "architecture.layers=2", "teacher=./nosuch")
    assert status == 1 and any("WRONG" in line and "no such directory" in line for line in lines)


def test_a_model_whose_memory_cannot_be_estimated_is_named_and_stops_nothing(
    tmp_path, monkeypatch, capsys, unchecked
):
    monkeypatch.chdir(tmp_path)
    make_encoder(tmp_path / "teacher")
    make_corpus(tmp_path / "corpus.txt", 12)
    make_task(tmp_path / "data")

    def reads_a_number(*given):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(run_needs, "_activation_bytes", reads_a_number)
    status, lines = doctor_says(capsys, *GIVEN)
    assert status == 0 and sum("the memory of its training cannot be estimated" in x for x in lines) == 4


def test_parameters_are_counted_from_configs_alone(tmp_path):
    from transformers import AutoModel

    teacher = make_encoder(tmp_path / "teacher")
    numbers = sum(p.numel() for p in AutoModel.from_pretrained(teacher).parameters())
    (teacher / "model.safetensors").unlink()
    o = load("small", ["architecture.layers=4", "architecture.width=16", "architecture.feed_forward=32",
                       "architecture.heads=4"])  # fmt: skip
    check = two_stage.check(o, two_stage.Given({"path": str(teacher)}))
    counted = {name: run_needs._count(model) for name, model in run_needs._models(check).items()}
    assert counted == {"teacher": numbers, "student": numbers}


def test_activations_are_those_that_a_pass_keeps():
    """Counted on torch's meta device: as many bytes as in a pass on the CPU, twice as many for twice the rows."""
    import torch
    from transformers import BertModel

    config = tiny_config(layers=3)
    with torch.device("meta"):
        model = BertModel(config)
    kept, weights = {}, BertModel(config)
    own = {p.untyped_storage().data_ptr() for p in weights.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        weights.train()(input_ids=torch.zeros(4, 32, dtype=torch.int64))
    expected = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    assert run_needs._activation_bytes(model, 4, 32, maps=True) == expected
    halves = [run_needs._activation_bytes(model, rows, 32, maps=False) for rows in (2, 4)]
    assert halves[1] < expected and 1.9 < halves[1] / halves[0] <= 2


def test_a_run_is_compared_with_the_memory_of_the_gpus_that_it_takes(
    tmp_path, monkeypatch, capsys, unchecked
):
    """Two stand-ins of GPUs, of which the second is nearly full."""
    import torch

    monkeypatch.chdir(tmp_path)
    make_encoder(tmp_path / "teacher")
    make_corpus(tmp_path / "corpus.txt", 12)
    make_task(tmp_path / "data")
    monkeypatch.setattr(doctor, "_check_gpus", lambda report: None)
    monkeypatch.setattr(device, "accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((8e9, 2e6)[i], 8e9))

    def of_gpus(*given: str) -> dict[str, str]:
        """The lines on GPUs, by a GPU's number, or all."""
        lines = doctor_says(capsys, *GIVEN, *given)[1]
        found = (re.match(r"  \S+ +(?:memory of GPU (\d)|GPUs )", line) for line in lines)
        return {match[1] or "all": match.string for match in found if match}

    assert list(of_gpus()) == ["0"] and of_gpus()["0"].startswith("  ok")
    both = of_gpus("job.nproc=2")
    assert both["0"].startswith("  ok") and both["1"].startswith("  WRONG")
    assert both["1"].endswith(" more, or give job.micro_batch=auto")
    needed = [
        float(of_gpus("general.batch_size=64", *given)["0"].split(" MB needed")[0].split()[-1])
        for given in ((), ("job.micro_batch=16",), ("job.micro_batch=auto",))
    ]
    assert needed == sorted(needed, reverse=True) and needed[0] > 2 * needed[2], needed
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}')
    held, kept = (
        float(of_gpus("job.zero=1", *given)["0"].split(" MB needed")[0].split()[-1])
        for given in ((), ("job.deepspeed=ds.json",))
    )
    assert 0 < held - kept
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    on_two_hosts, alike = of_gpus("job.hostfile=hosts"), of_gpus("job.nproc=4")
    assert on_two_hosts == {name: line for name, line in alike.items() if name in "01"}
    assert "4 ranks on this host need 4 GPUs, it has 2" in alike["all"] and "all" not in on_two_hosts


def test_gpus_their_driver_and_libraries_are_named(tmp_path, monkeypatch, capsys):
    """A stand-in of a GPU."""
    import torch

    (tmp_path / "version").write_text("570.86.15\n")
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setattr(device, "accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    card = SimpleNamespace(name="NVIDIA A100", major=8, minor=0)
    for name, value in {
        "device_count": 1,
        "get_device_properties": card,
        "mem_get_info": (30e9, 40e9),
        "is_bf16_supported": True,
        "nccl.version": (2, 27, 3),
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value, **__: value)
    doctor._check_gpus(doctor.Report())
    said = capsys.readouterr().out
    assert "NVIDIA A100, 30.0 GB free of 40.0 GB, compute capability 8.0" in said, said
    assert "bf16 (job.precision=auto)" in said and "driver 570.86.15, CUDA 12.8, NCCL 2.27.3" in said, said


def test_drift_from_the_pinned_versions_is_named(tmp_path, monkeypatch, capsys):
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==0.0.1\npyyaml==0.0.2\nnosuchpackage==1\n")
    monkeypatch.setattr(doctor, "CONSTRAINTS", pins)
    report = doctor.Report()
    doctor.check_machine(report, tmp_path)
    text = capsys.readouterr().out
    assert "(pinned 0.0.1), 1 of other packages" in text and "0.0.2" not in text and not report.wrong
    pins.unlink()  # as where the package is installed
    doctor.check_machine(report, tmp_path)
    text = capsys.readouterr().out
    assert f"{importlib.metadata.version('torch').partition('+')[0]}\n" in text and "(pinned" not in text


def test_what_doctor_calls_fine_the_run_takes(tmp_path, monkeypatch, capsys):
    """It does what the stage `check` does, of all rows, and leaves nothing but tokenized rows."""
    monkeypatch.chdir(tmp_path)
    make_encoder(tmp_path / "teacher")
    make_corpus(tmp_path / "corpus.txt", 12)
    make_task(tmp_path / "data")

    def refused(words: str, *given: str) -> None:
        status, lines = doctor_says(capsys, *GIVEN, *given)
        assert status == 1 and any(re.search(f"WRONG +check +{words}", line) for line in lines), lines
        assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]

    status, lines = doctor_says(capsys, *GIVEN)
    text = "\n".join(lines)
    assert status == 0 and "F1 is that of the class" in text and "intermediate: 40 rows" in text, text
    assert "all rows can be read; vocabularies, classes, layers and lengths fit" in text
    refused("general.max_length: 1000 tokens are above the model's limit", "general.max_length=1000")
    refused("intermediate.layer_map: .*must be 2 teacher layers", "intermediate.layer_map=[9, 9]")
    refused("augmentation.entities: 'swap' needs", "augment=true", "augmentation.entities=swap")
    rows = [f"хорошо {n},{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "ru.csv").write_text("\n".join(["text,label", *rows]))
    refused("tuning: 100% of the tokens are .UNK.", "data=ru.csv")
    train = next((tmp_path / "data").glob("train.*"))
    train.write_text(train.read_text() + "one field alone\n")
    refused(".*line .*: 1 fields")
    make_task(tmp_path / "data")
    with open(tmp_path / "corpus.txt", "ab") as file:
        file.write(b"\xff\xfe\xff")
    refused(".*corpus.txt, line")


@pytest.mark.parametrize(
    ("command", "name", "stages"),
    [
        (["command=general-distill"], "small", ["check", "general"]),
        (["command=augment"], "small-tiny", ["masked_lm", "augment"]),
        (["name=mine.yaml"], "mine-seed4", ["check", "teacher", "layers", "kd", "evaluate"]),
        (
            ["name=deit", "task=digits", "teacher=packaged-convnet", "seeds=4"],
            "deit-seed4",
            ["check", "teacher"],
        ),
    ],
)
def test_it_answers_for_each_command_that_makes_a_run(tmp_path, monkeypatch, capsys, command, name, stages):
    monkeypatch.chdir(tmp_path)
    make_encoder(tmp_path / "teacher")
    make_corpus(tmp_path / "corpus.txt", 12)
    make_task(tmp_path / "data")
    (tmp_path / "mine.yaml").write_text(
        "seeds: [4]\nbase: {training: {max_length: 32}}\n"
        "stages: {layers: {losses: [hidden_states]}}\n"
        "students: {kd: {losses: [soft_labels], student: {init: layers}}}\n"
    )
    given = [
        option for option in GIVEN if command[0].startswith("command=") or option.split(".")[0] not in UNUSED
    ]
    status, lines = doctor_says(capsys, *(given if "name=deit" not in command else ()), *command)
    assert status == 0 and f"what run {name} needs" in lines, "\n".join(lines)
    planned = [line.split()[1] for line in lines if " pending" in line]
    assert planned[: len(stages)] == stages
    assert any(line.startswith("  ok     check ") and "all rows can be read" in line for line in lines)
    status, lines = doctor_says(capsys, *given, *command, "task=tiny", "data=nosuch", "corpus=nosuch")
    assert status == 1 and any(line.startswith("  WRONG") and "nosuch" in line for line in lines)


def test_every_command_that_makes_a_run_can_be_asked_about():
    for name, command in COMMANDS.items():
        if command.makes_run:
            assert to_make({"command": name, **({"name": "deit"} if name == "recipe" else {})}), name


def test_a_command_that_makes_no_run_is_one_line(capsys):
    assert main(["doctor", "command=export"]) == 2
    assert "command=export makes no run; give demo, general-distill" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("a key"), OSError("no answer"), RuntimeError("two\nlines")])
def test_a_check_that_fails_is_a_finding_and_no_traceback(tmp_path, monkeypatch, capsys, error):
    monkeypatch.chdir(tmp_path)
    make_encoder(tmp_path / "teacher")
    make_corpus(tmp_path / "corpus.txt", 12)
    make_task(tmp_path / "data")

    def fails(*given):
        raise error

    monkeypatch.setattr("stages.check.run", fails)
    monkeypatch.setattr(doctor, "_check_gpus", fails)
    status, lines = doctor_says(capsys, *GIVEN)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    wrong = [line.split(maxsplit=2)[1:] for line in lines if line.startswith("  WRONG")]
    assert status == 1 and wrong == [["machine", said], ["check", said]] and lines[-1] == "2 wrong"


def test_a_full_disk_is_wrong(run, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.cli.doctor.free_disk", lambda directory: 0)
    status, lines = doctor_says(capsys, "run=mine")
    assert status == 1 and any("no space is left under runs/: free some" in line for line in lines)
