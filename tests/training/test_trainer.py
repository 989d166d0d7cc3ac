import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2lab.training.config import TrainConfig
from gpt2lab.training.finetuning import finetune
from gpt2lab.training.runs import read_metrics
from gpt2lab.training.trainer import training_arguments


@pytest.mark.parametrize(
    ("setting", "argument", "value"),
    [
        ("learning_rate", "learning_rate", 0.25),
        ("weight_decay", "weight_decay", 0.125),
        ("max_grad_norm", "max_grad_norm", 7.5),
        ("seed", "seed", 11),
        ("batch_size", "per_device_train_batch_size", 5),
        ("grad_accum", "gradient_accumulation_steps", 6),
        ("steps", "max_steps", 23),
        ("gradient_checkpointing", "activation_checkpointing", True),
        ("compile", "torch_compile", True),
        ("report_to", "report_to", ["tensorboard"]),
    ],
)
def test_setting_reaches_transformers(random_lab, tmp_path, setting, argument, value):
    given = value[0] if isinstance(value, list) else value
    config = TrainConfig(**{"steps": 3, "eval_every": 1} | {setting: given})
    assert getattr(training_arguments(config, tmp_path, random_lab()), argument) == value


def test_tensorboard_is_sent_the_losses_of_the_run(no_dropout_folder, moon, tmp_path):
    settings = {"block_size": 16, "steps": 4, "eval_every": 2, "runs_dir": tmp_path, "report_to": "tensorboard"}
    folder = finetune(model=str(no_dropout_folder), data=moon, **settings).folder
    [events] = folder.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events.parent)).Reload()
    for split, tag in (("train", "train/loss"), ("validation", "eval/loss")):
        sent = [(event.step, event.value) for event in found.Scalars(tag)]
        measured = [(metric.step, metric.loss) for metric in read_metrics(folder) if metric.split == split]
        assert [step for step, _ in sent] == [step for step, _ in measured]
        assert [loss for _, loss in sent] == pytest.approx([loss for _, loss in measured], rel=1e-6)
