"""Mean teacher: the average's schedule, who sees which view, which labels count, and who predicts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from medtl.adapters import Batch, build_adapter
from medtl.adapters.mean_teacher import MeanTeacher
from medtl.errors import ConfigError, DataError
from medtl.models import Output, with_features
from tests.adapters.toys import domains, masks, network, segmenter
from tests.adapters.training import train


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)


def test_decay_starts_at_zero_and_is_capped() -> None:
    adapter = MeanTeacher(network(), decay=0.7)
    expected = None
    for t, value in enumerate([4.0, 8.0, 2.0, 6.0, 10.0]):
        fill(adapter.model, value)
        adapter.on_step_end()
        decay = min(1 - 1 / (t + 1), 0.7)
        expected = value if expected is None else decay * expected + (1 - decay) * value
        for key, tensor in adapter.teacher.state_dict().items():
            # Weights and buffers are averaged, counters copied.
            wanted = expected if tensor.is_floating_point() else value
            torch.testing.assert_close(tensor, torch.full_like(tensor, wanted), msg=key)
    assert int(adapter.updates) == 5


def test_counter_is_saved() -> None:
    adapter = MeanTeacher(network())
    train(adapter, 4, 8)
    other = MeanTeacher(network(seed=3))
    other.load_state_dict(copy.deepcopy(adapter.state_dict()))
    assert int(other.updates) == 4
    torch.testing.assert_close(other.confidence, adapter.confidence)


def test_teacher_is_not_trained_and_its_buffers_move_by_the_average_alone() -> None:
    adapter = MeanTeacher(network(), threshold=0.0).train()
    source, target, _ = domains(8, 0)
    before = copy.deepcopy(adapter.teacher.state_dict())
    adapter(source, target, progress=1.0)["loss"].backward()
    assert all(torch.equal(v, before[k]) for k, v in adapter.teacher.state_dict().items())
    assert all(p.grad is None for p in adapter.teacher.parameters())
    trained = {id(p) for g in adapter.param_groups(1.0) for p in g["params"]}
    assert not trained & {id(p) for p in adapter.teacher.parameters()}


def test_teacher_sees_the_plain_view_and_the_student_the_strong_one() -> None:
    adapter = MeanTeacher(segmenter(), threshold=0.0).train()
    source, target, _ = masks(4, 0)
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    adapter.teacher.register_forward_pre_hook(lambda _, inputs: seen["teacher"].append(inputs[0]))
    adapter.model.register_forward_pre_hook(lambda _, inputs: seen["student"].append(inputs[0]))
    adapter(source, target, progress=1.0)
    assert [torch.equal(a, b) for a, b in zip(seen["teacher"], [target.image], strict=True)] == [True]
    wanted = [source.image, target.strong]
    assert [torch.equal(a, b) for a, b in zip(seen["student"], wanted, strict=True)] == [True, True]


def test_teacher_has_no_dropout() -> None:
    model = with_features(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2)))
    adapter = MeanTeacher(model, threshold=0.0).train()
    outputs = []
    adapter.teacher.register_forward_hook(lambda _, __, output: outputs.append(output.logits))
    source, target, _ = domains(6, 0)
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapter(source, target, progress=0.0)
    assert torch.equal(*outputs)


class Fixed(nn.Module):
    """Gives the same logits whatever the image; features are not used."""

    num_classes = 2

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, image: Tensor) -> Output:
        return Output(self.logits, image)


def voxels(confidences: list[float], classes: list[int]) -> Tensor:
    """Logits (1, 2, n) of voxels with given confidence in given classes."""
    p = torch.tensor(confidences).double()
    first = torch.where(torch.tensor(classes) == 0, p, 1 - p)
    return torch.stack([first, 1 - first]).log()[None].float()


def run(adapter: MeanTeacher, size: int) -> dict[str, Tensor]:
    image = torch.rand(1, 1, size)
    target = Batch(image=image, strong=image)
    return adapter(Batch(image=image, label=torch.zeros(1, size).long()), target, progress=1.0)


def test_uncertain_voxels_count_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four labels are sure: their cross-entropy over four, not over two."""
    adapter = MeanTeacher(Fixed(voxels([0.99, 0.98, 0.6, 0.7], [0, 1, 0, 1])), threshold=0.95)
    monkeypatch.setattr(adapter, "supervised_loss", lambda logits, label: 0.0 * logits.sum())
    losses = run(adapter, 4)
    expected = -(math.log(0.99) + math.log(0.98)) / 4
    assert float(losses["target_loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(losses["sure"]) == 0.5


def test_sure_depends_on_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class on which the teacher is never sure is learned nevertheless."""
    adapter = MeanTeacher(Fixed(voxels([0.99, 0.9, 0.7, 0.55], [0, 0, 1, 1])), threshold=0.95)
    monkeypatch.setattr(adapter, "supervised_loss", lambda logits, label: 0.0 * logits.sum())
    assert float(run(adapter, 4)["sure"]) == 0.25  # at first: .99 alone
    torch.testing.assert_close(adapter.confidence, torch.tensor([0.9 + 0.1 * 0.945, 0.9 + 0.1 * 0.625]))
    adapter.confidence.copy_(torch.tensor([0.98, 0.7]))  # thresholds .931 and .665
    adapter.eval()
    assert float(run(adapter, 4)["sure"]) == 0.5  # .99 of class 0, .7 of class 1
    torch.testing.assert_close(adapter.confidence, torch.tensor([0.98, 0.7]))  # moves in training only


def test_a_class_that_is_not_predicted_keeps_its_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = MeanTeacher(Fixed(voxels([0.8, 0.9], [0, 0])))
    adapter.confidence.fill_(0.6)
    monkeypatch.setattr(adapter, "supervised_loss", lambda logits, label: 0.0 * logits.sum())
    run(adapter, 2)
    torch.testing.assert_close(adapter.confidence, torch.tensor([0.6 + 0.1 * 0.25, 0.6]))


@pytest.mark.parametrize(
    ("progress", "weight"), [(0.0, math.exp(-5)), (0.2, math.exp(-1.25)), (0.4, 1.0), (1.0, 1.0)]
)
def test_ramp_up(progress: float, weight: float) -> None:
    adapter = MeanTeacher(network(), weight=2.0, ramp_up=0.4)
    source, target, _ = domains(8, 0)
    assert float(adapter(source, target, progress=progress)["weight"]) == pytest.approx(2 * weight, rel=1e-5)
    at_once = MeanTeacher(network(), ramp_up=0.0)
    assert float(at_once(source, target, progress=0.0)["weight"]) == 1.0


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_who_predicts(who: str) -> None:
    adapter = MeanTeacher(network(), predict_with=who)
    train(adapter, 4, 8)
    student, teacher = copy.deepcopy(adapter.model.state_dict()), adapter.teacher.state_dict()
    assert any(not torch.equal(v, teacher[k]) for k, v in student.items())
    adapter.on_fit_end({})
    wanted = teacher if who == "teacher" else student
    assert all(torch.equal(v, wanted[k]) for k, v in adapter.predictor.state_dict().items())


def test_teacher_gets_the_targets_statistics_too() -> None:
    adapter = MeanTeacher(network(), statistics="target")
    train(adapter, 4, 8)
    target = domains(64, 100)[1]
    adapter.on_fit_end({"target": [target]})
    teacher = adapter.predictor
    mean = teacher.module[0](target.image).mean(dim=(0, 2, 3))
    torch.testing.assert_close(teacher.module[1].running_mean, mean)
    assert teacher is adapter.teacher


def test_a_strong_view_is_needed() -> None:
    source, target, _ = domains(4, 0)
    with pytest.raises(DataError, match="strong view"):
        MeanTeacher(network())(source, Batch(image=target.image), progress=0.0)


@pytest.mark.parametrize(
    "options",
    [{"weight": 0.0}, {"decay": 1.0}, {"threshold": 1.2}, {"ramp_up": -1.0}, {"predict_with": "both"}],
)
def test_refuses(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="MeanTeacher: "):
        build_adapter("mean_teacher", network(), **options)
