"""What only a GPU can show: `make test-gpu`. In one process, on tiny models; nothing is fetched.

Most tests take seconds. What may take minutes:

- The tests at the end call torch.compile, which took minutes on an H200. They come last, so that all others are reached.
- The command with a stage of each kind, which is killed and started again.

On one GPU the tests of offload failed in three processes at once, and passed one after the other: keep `-n 0`.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from checkpoints.errors import UserError
from stages.distillation import outputs
from stages.distillation.device import accelerator, device_of_rank
from stages.distillation.distillation import Distillation
from stages.distillation.losses import AttentionScores, HiddenStates, MaskedSoftLabels, MaskedWords
from stages.distillation.models import ModelSource, load_masked_lm, load_tokenizer
from stages.distillation.outputs import ATTENTION, CaptureSpec, read
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.batches import Batch
from stages.tasks.masking import Masking
from stages.training.cached_rows import corpus_rows
from stages.training.compiled import usual_shapes
from stages.training.job import Interrupted, Job
from stages.training.micro_batch import errors_when_full, ran_out
from stages.training.options import Job as JobOptions
from stages.training.options import Training
from stages.training.stage import Stage
from tests.conftest import make_corpus, make_encoder, make_task, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(accelerator() == "cpu", reason="no GPU: torch sees none, or DS_ACCELERATOR says cpu"),
]
STAGES = ("tuning", "general", "masked_lm", "prediction", "finetuning", "intermediate")
"""Of the command, the one that is killed last."""
CORPUS = {"reader": "files", "version": 1}


@pytest.fixture
def make(tmp_path, world):
    """Makes a job on the GPU that learns layers as the general stage does, without dropout, or layers and masked words."""
    make_corpus(tmp_path / "corpus.txt", 40)
    make_encoder(tmp_path / "bert", width=32)
    make_encoder(tmp_path / "student", layers=2, width=24, seed=1)  # heads 6 wide: no multiple of 8

    def job(
        name: str,
        batch_size: int = 16,
        epochs: int = 2,
        deepspeed: dict | None = None,
        masked: bool = True,
        **settings,
    ) -> Job:
        training = asdict(replace(Training(), epochs=epochs, batch_size=batch_size, learning_rate=1e-3))
        options = {"training": training, "seed": 1}
        directory = tmp_path / "runs" / name / "general"
        directory.mkdir(parents=True, exist_ok=True)
        files = CORPUS | {"files": {"corpus.txt": str(tmp_path / "corpus.txt")}}
        stage = Stage(
            "general", "general", directory, options, {"corpus": {"name": "corpus", "identity": files}}, "",
            JobOptions(**{"precision": "bf16"} | settings), world, deepspeed or {},
        )  # fmt: skip
        torch.manual_seed(1)
        source = ModelSource(str(tmp_path / "bert"))
        (student, _), (teacher, _) = (
            load_masked_lm(ModelSource(str(tmp_path / "student"))),
            load_masked_lm(source),
        )
        configs = student.config, teacher.config
        losses = [HiddenStates(*configs), AttentionScores(*configs)]
        if masked:
            losses += [MaskedWords(), MaskedSoftLabels()]
        else:
            student, teacher = student.base_model, teacher.base_model
            drop_nothing(student)
        model = Distillation(student, losses)
        frozen = FrozenTeacher(teacher, model.teacher_capture, stage.device, stage.precision)
        tokenizer = load_tokenizer(source)
        masking = Masking(tokenizer, 0.2, seed=1)
        rows = corpus_rows(stage, tokenizer, 32, 0)
        resources.push(stage.resources)
        if not masked:
            return Job(stage, model, rows, frozen)
        return Job(stage, model, replace(rows, masking=masking), frozen, batch_transform=masking)

    with ExitStack() as resources:  # TF32, or a compiled model, is not for the next test
        yield job


def drop_nothing(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def weights(job: Job) -> dict[str, torch.Tensor]:
    return {name: p.detach().float().cpu().clone() for name, p in job.model.named_parameters()}


def check_resume(make, **given) -> None:
    """A job that is stopped and resumed must end with the weights of an undisturbed one, bit for bit."""

    def learned(name):
        job = make(name, **given)
        with job.stage.resources:
            job.run()
        return weights(job)

    whole = learned("whole")
    for name, value in learned("again").items():
        assert value.equal(whole[name]), f"{name}: two runs differ before any is resumed"
    stopped = make("stopped", **given)
    stopped.stop.listen = lambda: None
    step = stopped.step

    def step_and_stop(rows):
        rate = step(rows)
        stopped.stop.number = 15 if stopped.state.step == 4 else 0
        return rate

    stopped.step = step_and_stop
    with pytest.raises(Interrupted), stopped.stage.resources:
        stopped.run()
    for name, value in learned("stopped").items():
        assert value.equal(whole[name]), name


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-3), ("bf16", 3e-2), ("fp16", 3e-2)])
def test_each_precision_computes_the_losses_of_the_cpu_and_learns(make, precision, near):
    job = make("gpu", precision=precision, log_every=1)
    job.model.eval()
    batch = job._batch(np.arange(16), np.ones(16, np.float32))
    with torch.no_grad(), torch.autocast("cuda", job.stage.precision, enabled=precision != "fp32"):
        found = job.model(batch, job.targets(batch))
    student, teacher = (copy.deepcopy(model).cpu().float() for model in (job.model, job.targets.model))
    there = FrozenTeacher(teacher, job.targets.spec, torch.device("cpu"))
    expected = student(batch.to("cpu"), there(batch.to("cpu")))
    for name, term in found.items():
        assert term.sum.item() == pytest.approx(expected[name].sum.item(), rel=near), name
    job.run()
    lines = (job.stage.directory / "metrics.jsonl").read_text().splitlines()
    hidden = [json.loads(line)["hidden"] for line in lines]
    assert len(hidden) > 5 and hidden[-1] < 0.95 * hidden[0]


def test_a_step_waits_for_nothing(make):
    job = make("waits")
    job.step(np.arange(16))
    torch.cuda.set_sync_debug_mode("error")
    try:
        job.step(np.arange(16, 32))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resumed_job_ends_with_the_same_weights_bit_for_bit(make, precision):
    check_resume(make, precision=precision)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_learns_the_same_within_rounding(make, zero):
    plain, sharded = (
        make("plain", precision="fp32", epochs=1),
        make(f"zero{zero}", precision="fp32", epochs=1, zero=zero),
    )
    plain.run(), sharded.run()
    expected = plain.student_weights()
    for name, value in sharded.student_weights().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_offload_learns_the_same_within_rounding(make, zero):
    on_host = {"device": "cpu", "pin_memory": True}
    details = {"offload_optimizer": on_host} | ({"offload_param": on_host} if zero == 3 else {})
    plain = make("plain", precision="fp32", epochs=1)
    offloaded = make("off", precision="fp32", epochs=1, zero=zero, deepspeed={"zero_optimization": details})
    plain.run(), offloaded.run()
    expected = plain.student_weights()
    for name, value in offloaded.student_weights().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_a_jobs_products_use_tf32_only_in_16_bits(make):
    for precision, rounded in (("fp32", "highest"), ("bf16", "high")):
        job = make(precision, precision=precision)
        assert torch.get_float32_matmul_precision() == rounded
        job.stage.resources.close()


def test_accumulation_learns_the_same_within_rounding(make):
    plain, parts = (
        make("one", precision="fp32", epochs=1),
        make("parts", precision="fp32", epochs=1, micro_batch=4),
    )
    for job in (plain, parts):
        drop_nothing(job.model)
        job.run()
    for name, value in weights(parts).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=1e-3, atol=1e-4)


def test_clipping_at_once_is_deepspeeds(make):
    ours, deepspeeds = make("ours", precision="fp32"), make("deepspeeds", precision="fp32")
    deepspeeds.engine.clips_at_once = False
    deepspeeds.engine.deepspeed.gradient_clipping = lambda: deepspeeds.options.clip
    for job in (ours, deepspeeds):
        job.step(np.arange(16))
    for name, value in weights(ours).items():
        torch.testing.assert_close(value, weights(deepspeeds)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("width", [24, 32])  # heads 6 and 8 wide
def test_a_captured_pass_is_that_of_the_cpu(padded, width, world):
    from transformers import BertModel

    torch.manual_seed(0)
    model = BertModel(tiny_config(width=width)).eval()
    model.set_attn_implementation(ATTENTION)
    mask = torch.ones(3, 16, dtype=torch.int64)
    if padded:
        mask[1, 9:] = 0
    ids = torch.randint(5, 20, (3, 16))
    batch = Batch({"input_ids": ids, "attention_mask": mask}, None, torch.ones(3), torch.arange(3), padded)
    spec = CaptureSpec(hidden=frozenset({0, 4}), queries_keys=frozenset({4}))
    with torch.no_grad():
        expected = read(model, batch, spec)
        there = copy.deepcopy(model).cuda()
        found = read(there, batch.to("cuda"), spec)
    real = mask.bool()
    for index, states in expected.hidden_BLW.items():
        torch.testing.assert_close(found.hidden_BLW[index].cpu()[real], states[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.queries_BHLD[4].shape, expected.queries_BHLD[4].shape)
    assert outputs.ATTENTION == model.config._attn_implementation


def test_memory_that_is_not_there_is_an_error_that_is_known(world):
    free, _ = torch.cuda.mem_get_info()
    with errors_when_full(world, 1), pytest.raises(RuntimeError) as error:
        torch.empty(int(0.95 * free), dtype=torch.uint8, device=world)
    assert ran_out(error.value)
    torch.empty(int(0.5 * free), dtype=torch.uint8, device=world)


def test_auto_takes_the_whole_batch_where_it_fits_and_learns_the_same(make):
    auto = make("auto", micro_batch="auto", epochs=1)
    assert auto.micro_batches == 1
    auto.run()


def test_more_ranks_than_gpus_is_one_line(world):
    with pytest.raises(UserError, match="has no GPU: it sees"):
        device_of_rank(torch.cuda.device_count())
    device_of_rank(0)


def test_a_command_with_a_stage_of_each_kind_killed_on_a_gpu_goes_on(tmp_path):
    make_encoder(tmp_path / "bert", width=32)
    make_corpus(tmp_path / "corpus.txt", 12)
    make_task(tmp_path / "task")
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable, "-m", "pipeline", "task-distill", "task=t", f"data={tmp_path / 'task'}", "text_columns=text",
        "label_column=label", "preset=tinybert4", f"teacher={tmp_path / 'bert'}", f"corpus={tmp_path / 'corpus.txt'}",
        "accept_teacher=true", "baselines=true", "finetuning.grid=", "augment=true", "augmentation.vectors=none",
        "augmentation.variants=1", "architecture.layers=2", "intermediate.epochs=10", "job.checkpoint_seconds=0.01",
        *(f"{stage}.max_length=32" for stage in STAGES), *(f"{stage}.epochs=1" for stage in STAGES[:-1]), "run=r",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not list((tmp_path / "runs").glob("r/intermediate/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "resumed at step" in done.stdout, done.stdout + done.stderr
    assert load_file(tmp_path / "runs/r/prediction/model/model.safetensors")
    assert list((tmp_path / "runs/r/augment/model").glob("rows-*.arrow"))
    assert "accelerator" in json.loads((tmp_path / "runs/r/prediction/finished.json").read_text())["machine"]
    shutil.rmtree(tmp_path / "runs")


# Last, for compiling may take minutes.


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-3), ("bf16", 3e-2), ("fp16", 3e-2)])
def test_compiled_steps_compute_the_same_losses(make, precision, near):
    found = []
    for compile in ("off", "on"):
        job = make(compile, precision=precision, compile=compile, masked=False)
        (rows, *_), _ = usual_shapes(job.batches_of(0), job.rows.lengths, 8)
        with torch.compiler.set_stance("fail_on_recompile"):  # what was compiled before the first step serves
            for _ in range(3):
                job.step(rows)
        found.append(job.log.means())
        job.stage.resources.close()
    assert found[0] == pytest.approx(found[1], rel=near)


def test_a_resumed_job_that_compiles_ends_with_the_same_weights_bit_for_bit(make):
    check_resume(make, precision="bf16", compile="on", masked=False)
