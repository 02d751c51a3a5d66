"""A DeepSpeed config of the user's own: what is taken, what is refused, and when a stage runs again because of it."""

import json

import pytest

from checkpoints import store
from checkpoints.errors import UserError
from pipeline.config.deepspeed_file import read_deepspeed
from pipeline.config.run_options import load
from pipeline.config.two_stage import StageSpec
from pipeline.plan import plan, write_stage_spec
from stages.training.options import Job

PUBLISHED = {
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "communication_data_type": "fp32",
    "zero_optimization": {
        "stage": "auto",
        "overlap_comm": True,
        "reduce_bucket_size": 5e8,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
    },
}
"""As it is given to transformers' trainer."""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config, and returns the `job` options that name it."""
    monkeypatch.chdir(tmp_path)

    def write(settings: object, **job: object) -> Job:
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (tmp_path / "ds.json").write_text(text)
        return Job(deepspeed="ds.json", **job)

    return write


def test_details_are_taken_and_auto_is_left_to_the_engine(write):
    assert read_deepspeed(Job()) == {}
    found = read_deepspeed(write(PUBLISHED, zero=2))
    assert found == {
        "communication_data_type": "fp32",
        "zero_optimization": {
            "overlap_comm": True,
            "reduce_bucket_size": 500_000_000,
            "offload_optimizer": {"device": "cpu", "pin_memory": False},
        },
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_batch_size": 64}, "train_batch_size is decided by STAGE.batch_size: take it out of the file"),
        ({"train_micro_batch_size_per_gpu": 8}, "is decided by job.micro_batch"),
        ({"gradient_accumulation_steps": 8}, "is decided by job.micro_batch"),
        ({"gradient_clipping": 1.0, "scheduler": {"type": "WarmupLR"}}, "STAGE.clip; scheduler is decided by STAGE"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is decided by STAGE.learning_rate"),
        ({"fp16": {"enabled": True}}, "fp16 is decided by job.precision"),
        ({"bf16": {"enabled": False}}, "bf16 is decided by job.precision"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage is decided by job.zero"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "zero_quantized_gradients=True is not an option"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "reduce_bucket_size=0 must be greater than 0"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer needs job.zero=1 or more, not 0"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "offload_param needs job.zero=3, not 0"),
        ({"zero_optimization": {"overlap_comm": True}}, "overlap_comm needs job.zero=1 or more, not 0: set that, or take"),
        ({"zero_optimization": {"sub_group_size": 1000}}, "sub_group_size needs job.zero=3, not 0"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "device='nvme' must be 'cpu' or 'none'"),
        ({"zero_optimization": 2}, "zero_optimization=2 must be a valid dictionary"),
        ({"compression_training": {}}, "compression_training={} is not an option"),
        ({"communication_data_type": "int8"}, "communication_data_type='int8' must be 'fp32', 'bf16' or 'fp16'"),
        ("{", "it is not JSON: .*; give a file of JSON"),
        ("[1]", "it holds no settings by name"),
    ],
)  # fmt: skip
def test_what_the_options_decide_or_the_engine_lacks_is_refused_by_name_in_one_line(write, settings, words):
    with pytest.raises(UserError, match=f"^job.deepspeed=ds.json: .*{words}") as error:
        read_deepspeed(write(settings))
    assert "\n" not in str(error.value)


def test_gradients_in_16_bits_need_zero_0(write):
    settings = {"communication_data_type": "fp16"}
    assert read_deepspeed(write(settings)) == settings
    with pytest.raises(UserError, match="communication_data_type of 16 bits needs job.zero=0, not 1"):
        read_deepspeed(write(settings, zero=1))


def test_a_detail_of_zero_3_is_refused_where_it_has_no_effect(write):
    settings = {
        "zero_optimization": {"stage3_prefetch_bucket_size": 1000, "offload_param": {"device": "none"}}
    }
    assert read_deepspeed(write(settings, zero=3)) == settings
    with pytest.raises(UserError, match="stage3_prefetch_bucket_size needs job.zero=3, not 2"):
        read_deepspeed(write(settings, zero=2))


def test_a_file_that_cannot_be_read_is_one_line(write, tmp_path):
    for path, words in (("no.json", "No such file"), (str(tmp_path), "Is a directory")):
        with pytest.raises(UserError, match=f"^job.deepspeed={path}: {words}.*; give a file of JSON"):
            read_deepspeed(Job(deepspeed=path))


def test_only_what_changes_the_weights_makes_a_trained_stage_again(write, tmp_path):
    stages = [
        StageSpec("check", "check", {"stages": {}}),
        StageSpec("general", "general", {"training": {"epochs": 1}}),
    ]
    run = tmp_path / "runs" / "r"

    def planned(settings: object | None, zero: int = 0) -> list[str]:
        job = [] if settings is None else [f"job.deepspeed={write(settings).deepspeed}", f"job.zero={zero}"]
        o = load("small", ["job.precision=fp32", *job])
        steps = plan(stages, run, o)
        write_stage_spec(steps[1], {}, o)
        assert store.read_json(run / "general" / "stage.json")["deepspeed"] == (settings or {})
        return [step.action for step in steps]

    assert planned(None) == ["run", "run"]
    with store.sealed(run / "general" / "checkpoints" / "step-00000001") as directory:
        (directory / "file").touch()
    assert planned({"zero_optimization": {"reduce_bucket_size": 1000}}, zero=1) == ["run", "resume"]
    with pytest.raises(UserError, match="half done with other options .*communication_data_type is new"):
        planned({"communication_data_type": "bf16"})
    spec = store.read_json(run / "general" / "stage.json")
    store.remove(run / "general" / "checkpoints")
    with store.sealed(run / "general" / "model") as directory:
        (directory / "file").touch()
    store.write_json(run / "general" / "finished.json", {"fingerprint": spec["fingerprint"]})
    assert planned({"communication_data_type": "fp32"}) == ["run", "skip"]
    assert planned({"communication_data_type": "bf16"}) == ["run", "run"]
