import itertools
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from ignite.engine import Engine, Events
from torch import Tensor, nn

from deepcv.data.augmentation import Augmentation, Recipe
from deepcv.data.loaders import Batch, TrainLoader
from deepcv.data.shards import Split
from deepcv.errors import DeepcvError
from deepcv.evaluation.inference import Pieces
from deepcv.nn.layers.blur import Blur
from deepcv.nn.layers.regularisation import DropPath
from deepcv.params.train import TrainParams
from deepcv.task import CLASSIFICATION
from deepcv.training.config import TrainConfig
from deepcv.training.engine import GUARD_STEPS, DivergedError, RunningMetrics, check_weights, create_trainer
from deepcv.training.history import History, Point
from deepcv.training.hyperparameters import Hyperparameters, Settings, initial, scheduled
from deepcv.training.losses import LOSSES, Term
from deepcv.training.objective import create_objective
from deepcv.training.optimizers import create_optimizer
from deepcv.training.schedules import OneCycle, Piecewise, Plateau, Ramp

CPU = torch.device("cpu")
IMAGES, LABELS = toys.labelled(28)
PLAIN = toys.config(shift=0, label_smoothing=0.0, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.1)


class Net(nn.Module):
    """Float64 and without a batch norm: sums of gradients are exact to 1e-12."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, images_nchw: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(images_nchw.double() / 255)}


def cross_entropy(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"], batch.targets)


def trainer_of(model: nn.Module, config: TrainConfig, **options: Any) -> tuple[Engine, TrainLoader, Hyperparameters]:
    split = Split(IMAGES, torch.tensor(LABELS).numpy())
    loader = TrainLoader(
        split, batch_size=config.batch_size, augmentation=Augmentation(), seed=config.seed, device=CPU, classes=2
    )
    optimizer = create_optimizer(model, config)
    settings = Settings.of(config)
    hyperparameters = Hyperparameters(
        scheduled(config, config.epochs * len(loader)), config=config, settings=settings, model=model,
        optimizer=optimizer, loader=loader,
    )  # fmt: skip
    metrics = RunningMetrics(CPU)
    trainer = create_trainer(
        model, optimizer, options.pop("objective", cross_entropy), hyperparameters, settings, metrics,
        autocast=torch.autocast("cpu", enabled=False), **options,
    )  # fmt: skip

    def begin(engine: Engine) -> None:
        loader.epoch = engine.state.epoch - 1
        hyperparameters.begin_epoch(loader.epoch * len(loader), [])

    trainer.add_event_handler(Events.EPOCH_STARTED, begin)
    trainer.state.optimizer, trainer.state.metrics_of_epoch = optimizer, metrics
    return trainer, loader, hyperparameters


def trained(config: TrainConfig, **options: Any) -> list[Tensor]:
    model = Net()
    trainer, loader, _ = trainer_of(model, config, **options)
    trainer.run(loader, max_epochs=config.epochs, epoch_length=len(loader))
    return list(model.parameters())


def by_hand(config: TrainConfig, windows: list[list[int]]) -> list[Tensor]:
    """Plain SGD at the rate of each window's last batch; `windows` are the batches of each step of an epoch."""
    model = Net()
    per_epoch = sum(len(window) for window in windows)
    rate = OneCycle(config.warmup).curve(config.lr, config.epochs * per_epoch)
    split = Split(IMAGES, torch.tensor(LABELS).numpy())
    loader = TrainLoader(split, batch_size=config.batch_size, augmentation=Augmentation(), seed=0, device=CPU)
    for loader.epoch in range(config.epochs):
        batches = list(loader)
        for window in windows:
            images = torch.cat([batches[place].images_nchw for place in window])
            targets = torch.cat([batches[place].targets for place in window])
            loss = cross_entropy(model(images), Batch(images, targets))
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            if config.clip_norm:
                norm = torch.sqrt(sum((g.square().sum() for g in gradients), start=torch.zeros(())))
                gradients = tuple(g * min(1.0, config.clip_norm / (float(norm) + 1e-6)) for g in gradients)
            lr = rate.at(loader.epoch * per_epoch + window[-1])
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= lr * gradient
    return list(model.parameters())


def close(one: list[Tensor], other: list[Tensor], bound: float = 1e-12) -> bool:
    return all(float((a - b).detach().abs().max()) <= bound for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("accumulate", "windows"), [
    (1, [[0], [1], [2], [3], [4], [5], [6]]),
    (2, [[0, 1], [2, 3], [4, 5], [6]]),  # the last, partial window is a step of its own
    (3, [[0, 1, 2], [3, 4, 5], [6]]),
    (100, [[0, 1, 2, 3, 4, 5, 6]]),
])  # fmt: skip
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_a_step_is_that_of_all_images_of_its_window(
    accumulate: int, windows: list[list[int]], clip_norm: float
) -> None:
    config = replace(PLAIN, batch_size=4, accumulate=accumulate, clip_norm=clip_norm)
    assert close(trained(config), by_hand(config, windows))


def test_pieces_give_the_gradient_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """A network that has memory for three images: batches of seven are taken in four pieces, of two, two, two and one."""

    class Small(Net):
        def forward(self, images_nchw: Tensor) -> dict[str, Tensor]:
            if len(images_nchw) > 3:
                raise torch.OutOfMemoryError("tried to allocate more than there is")
            return super().forward(images_nchw)

    config = replace(PLAIN, batch_size=7, accumulate=2)
    told: list[int] = []
    model, pieces = Small(), Pieces(tell=told.append)
    trainer, loader, _ = trainer_of(model, config, pieces=pieces)
    trainer.run(loader, max_epochs=config.epochs, epoch_length=len(loader))
    assert pieces.count == 4
    assert told == [2, 4]
    assert close(list(model.parameters()), by_hand(config, [[0, 1], [2, 3]]))
    assert capsys.readouterr().err.count("out of memory; 2 images at a time") == 1


def test_no_memory_for_one_image_is_said() -> None:
    def none(_outputs: object, _targets: object) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate more than there is")

    trainer, loader, _ = trainer_of(Net(), replace(PLAIN, batch_size=4), objective=none)
    with pytest.raises(DeepcvError, match="no memory for a single image"):
        trainer.run(loader, max_epochs=1, epoch_length=len(loader))


LITTLE_MEMORY = """
import resource, torch
from pathlib import Path
from deepcv.evaluation.inference import Pieces
torch.set_num_threads(1)
torch.ones(9).sum()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
pieces = Pieces()
while not pieces.fit(lambda: [torch.ones(2**30 // pieces.count, dtype=torch.uint8).sum() for _ in range(pieces.count)], 64):
    pass
print(pieces.count)
"""


def test_a_cpu_without_memory_is_noticed_too() -> None:
    """1 GiB at once, with room for 400 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() in ("4", "8", "16", "32"), done.stderr  # how much of the room is taken already varies


def test_every_value_is_set_when_its_curve_says_so() -> None:
    """What `scheduled` says before a training, and a plot shows, against what optimizer, layers and loader hold at each step."""
    courses = {
        "lr": Ramp("cosine", end=0.01, warmup=0.2), "momentum": OneCycle(0.4, peak=0.85, start=0.95, end=0.95),
        "weight_decay": Ramp("linear", start=0.1), "label_smoothing": Piecewise(((0.0, 0.0), (0.5, 0.2), (1.0, 0.1)), "step"),
        "clip_norm": Ramp("exponential", start=5.0, end=0.5), "accumulate": Piecewise(((0.0, 1), (0.5, 3)), "step"),
        "dropout": Ramp("linear", start=0.5, end=0.1), "drop_path": Ramp("linear", start=0.0, end=0.3),
        "blur": Ramp("linear", start=1.0),
        "augmentation.randaugment.strength": Ramp("linear", start=0.0, end=1.0), "shift": Ramp("linear", start=4.0),
    }  # fmt: skip
    config = replace(PLAIN, batch_size=4, epochs=3, momentum=0.9, schedules=courses)
    model = Net(nn.Dropout(0.3), DropPath(0.0))
    model.blur = Blur(2.0)
    trainer, loader, hyperparameters = trainer_of(model, config)
    optimizer, seen = trainer.state.optimizer, []

    def look(_engine: Engine) -> None:
        group = optimizer.param_groups[0]
        settings = hyperparameters.settings
        seen.append({
            "lr": group["lr"], "momentum": group["momentum"], "weight_decay": group["weight_decay"],
            "label_smoothing": settings.label_smoothing, "clip_norm": settings.clip_norm,
            "accumulate": settings.accumulate, "dropout": model.layers[1].p, "drop_path": model.layers[2].p,
            "blur": float(model.blur.sigma),
            "augmentation.randaugment.strength": loader.recipe.randaugment.strength, "shift": loader.augmentation.shift,
        })  # fmt: skip
        assert optimizer.param_groups[1]["weight_decay"] == 0.0  # biases

    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.run(loader, max_epochs=3, epoch_length=7)
    assert len(seen) == 21
    for course in scheduled(config, 21):
        for step in range(21):
            expected = course.at(step if course.each_step else step // 7 * 7)
            assert seen[step][course.name] == pytest.approx(expected, rel=1e-6), (course.name, step)


def test_own_operations_change_between_epochs() -> None:
    """By the names that params have: what the loader's recipe has in each epoch, numbers and all."""
    operation = {"name": "rotate", "magnitude": [-20.0, 20.0], "probability": 0.5}
    courses = {
        "augmentation.operations.1.magnitude.0": Ramp("linear", start=0.0, end=-20.0),
        "augmentation.operations.1.magnitude.1": Ramp("linear", start=0.0, end=20.0),
        "augmentation.operations.0.probability": Piecewise(((0.0, 1.0), (0.5, 0.25)), "step"),
        "augmentation.augmix.chains": Ramp("linear", start=3.0, end=1.0), "augmentation.augmix.severity": Plateau(patience=0),
    }  # fmt: skip
    values = {"operations": [{"name": "flip", "magnitude": [], "probability": 0.5}, operation]}
    params = TrainParams.model_validate({"network": "n.yaml", "augmentation": values})
    config = replace(
        PLAIN, batch_size=4, epochs=3, augmentation=Recipe.of(params.configuration()["augmentation"]), schedules=courses
    )
    trainer, loader, hyperparameters = trainer_of(Net(), config)
    seen = []

    def look(_engine: Engine) -> None:
        flip, rotate = loader.recipe.operations
        assert loader.policies[0].operations == (flip, rotate)
        seen.append((flip.probability, rotate.start, rotate.end, rotate.probability, loader.recipe.augmix.chains))

    trainer.add_event_handler(Events.EPOCH_COMPLETED, look)
    trainer.run(loader, max_epochs=3, epoch_length=7)
    assert seen == [
        (1.0, 0.0, 0.0, 0.5, 3), (1.0, pytest.approx(-7.0), pytest.approx(7.0), 0.5, 2),
        (0.25, pytest.approx(-14.0), pytest.approx(14.0), 0.5, 2),
    ]  # fmt: skip
    hyperparameters.begin_epoch(14, [{"val_loss": 1.0}, {"val_loss": 1.0}])
    assert loader.recipe.augmix.severity == 1.5


def test_the_label_smoothing_of_a_loss_follows_its_schedule() -> None:
    """Each step's loss against torch's own with the smoothing of that step; the other term keeps its own."""
    terms = (Term("cross_entropy", options={"label_smoothing": 0.5}), Term("cross_entropy", weight=0.25))
    config = replace(
        PLAIN, batch_size=4, losses=terms, schedules={"losses.1.label_smoothing": Ramp("linear", start=0.4)}
    )
    assert initial(config, "losses.0.label_smoothing") == 0.5
    assert initial(config, "losses.1.label_smoothing") == 0.0
    settings = Settings.of(config)
    assert settings.loss_options == {}
    objective = create_objective(config, settings, {"logits": (2,)}, CLASSIFICATION, 2, torch.tensor([14, 14]))
    (course,) = (one for one in scheduled(config, 21) if one.name != "lr")
    hyperparameters = Hyperparameters(
        [course], config=config, settings=settings, model=Net(), optimizer=create_optimizer(Net(), config),
        loader=trainer_of(Net(), PLAIN)[1],
    )  # fmt: skip
    logits, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    for step, smoothing in ((0, 0.4), (10, 0.2), (20, 0.0)):
        hyperparameters.step(step)
        own, other = (nn.functional.cross_entropy(logits, targets, label_smoothing=one) for one in (0.5, smoothing))
        found = objective({"logits": logits}, Batch(torch.zeros(4, 1, 8, 8), targets))
        assert float(found) == pytest.approx(float(own + 0.25 * other), rel=1e-6)


@pytest.mark.parametrize(("loss", "option", "value"), [
    (loss, option, one.default) for loss, kind in LOSSES.items() for option, one in kind.options.items()
    if isinstance(one.default, float) and "class" in kind.targets and option != "target_threshold"  # of soft targets
])  # fmt: skip
def test_every_number_of_a_loss_follows_its_schedule(loss: str, option: str, value: float) -> None:
    """Each step's loss against the loss itself with the option's value of that step, from the present one to another."""
    name = f"losses.0.{option}"
    config = replace(PLAIN, losses=(Term(loss),), schedules={name: Ramp("linear", end=0.6)})
    assert initial(config, name) == value
    settings = Settings.of(config)
    objective = create_objective(config, settings, {"logits": (2,)}, CLASSIFICATION, 2, None)
    (course,) = (one for one in scheduled(config, 21) if one.name == name)
    hyperparameters = Hyperparameters(
        [course], config=config, settings=settings, model=Net(), optimizer=create_optimizer(Net(), config),
        loader=trainer_of(Net(), PLAIN)[1],
    )  # fmt: skip
    logits, targets, found = torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), []
    views = {"views": 1} if LOSSES[loss].views else {}
    for step, now in ((0, value), (10, (value + 0.6) / 2), (20, 0.6)):
        hyperparameters.step(step)
        found.append(float(objective({"logits": logits}, Batch(torch.zeros(4, 1, 8, 8), targets))))
        assert found[-1] == pytest.approx(
            float(LOSSES[loss].function(logits, targets, **views, **{option: now})), rel=1e-6
        )
    assert len(set(found)) > 1


def test_what_can_change_in_losses_is_named() -> None:
    config = replace(PLAIN, losses=(Term("cross_entropy"), Term("triplet")))
    with pytest.raises(DeepcvError, match=r"losses\.0\.label_smoothing, losses\.1\.weight, losses\.1\.margin, or"):
        initial(config, "losses.1.mining")


def test_the_whole_window_is_planned_when_its_size_changes() -> None:
    config = replace(PLAIN, batch_size=4, epochs=1, schedules={"accumulate": Piecewise(((0.0, 1), (0.5, 3)), "step")})
    trainer, loader, _ = trainer_of(Net(), config)
    steps: list[bool] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.output))
    trainer.run(loader, max_epochs=1, epoch_length=7)
    assert steps == [True, True, True, True, False, False, True]


@pytest.mark.parametrize("name", [
    "lrr", "augmentation.policy", "augmentation.mixup", "epochs", "flip", "schedules", "augmentation.operations.0.probability",
])  # fmt: skip
def test_an_unknown_hyperparameter_is_named(name: str) -> None:
    with pytest.raises(DeepcvError, match=rf"train\.schedules\.{name}: expected one of lr, momentum"):
        initial(PLAIN, name)


@pytest.mark.parametrize("name", ["dropout", "drop_path", "blur"])
def test_a_schedule_without_its_layer_is_refused(name: str) -> None:
    with pytest.raises(DeepcvError, match=rf"train\.schedules\.{name}: the network has no"):
        trainer_of(Net(), replace(PLAIN, schedules={name: Ramp(start=0.5)}))


def test_a_plateau_follows_the_history() -> None:
    config = replace(PLAIN, schedules={"lr": Plateau(patience=0)})
    trainer, _, hyperparameters = trainer_of(Net(), config)
    hyperparameters.begin_epoch(0, [{"val_loss": 1.0}, {"val_loss": 1.0}])
    assert trainer.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    hyperparameters.step(3)
    assert trainer.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_loss_that_is_no_number_ends_the_training_before_its_epoch_does() -> None:
    calls = itertools.count(1)

    def breaks(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return cross_entropy(outputs, batch) * (math.nan if next(calls) > 60 else 1.0)

    trainer, loader, _ = trainer_of(Net(), replace(PLAIN, batch_size=1), objective=breaks)
    with pytest.raises(
        DivergedError, match=r"diverged in epoch 4 \(loss nan\); lower train\.lr, or set train\.clip_norm"
    ):
        trainer.run(loader, max_epochs=10, epoch_length=len(loader))
    assert trainer.state.iteration == 100  # the first look after the 60th


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_it_ends_within_so_many_steps_however_long_an_epoch_is(accumulate: int) -> None:
    """Of seven batches, so that most epochs' iterations that divide by 50 are within a window."""
    steps: list[bool] = []
    calls = itertools.count(1)

    def breaks(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return cross_entropy(outputs, batch) * (math.nan if next(calls) > 101 else 1.0)

    trainer, loader, _ = trainer_of(Net(), replace(PLAIN, batch_size=4, accumulate=accumulate), objective=breaks)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.output and engine.state.iteration > 101)
    )
    with pytest.raises(DivergedError):
        trainer.run(loader, max_epochs=1000, epoch_length=7)
    assert 0 < sum(steps) < GUARD_STEPS  # the one that raises is not among them


@pytest.mark.parametrize(("every", "length", "due"), [
    (0, 7, [7, 14, 21]), (50, 7, [7, 14, 21]), (3, 7, [4, 7, 11, 14, 18, 21]), (2, 7, [3, 5, 7, 10, 12, 14, 17, 19, 21]),
    (1, 3, list(range(1, 10))), (7, 7, [7, 14, 21]), (50, 100, [50, 100, 150, 200, 250, 300]),
])  # fmt: skip
def test_an_epoch_has_points_as_far_apart_as_it_can(every: int, length: int, due: list[int]) -> None:
    history, found = History(every=every), []
    for step in range(1, 3 * length + 1):
        if history.due(step, length):
            found.append(step)
            history.points.append(Point(step, 0.0, {}))
    assert found == due


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_point_has_the_loss_since_the_last_one_and_all_that_is_scheduled(accumulate: int) -> None:
    """Against the losses as they were computed, batch by batch, and the curves; the shift changes between epochs alone."""
    losses: list[Tensor] = []

    def kept(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        loss = cross_entropy(outputs, batch)
        losses.append(loss.detach())
        return loss

    courses = {"momentum": OneCycle(0.4, peak=0.85, start=0.95, end=0.95), "shift": Ramp("linear", start=4.0)}
    config = replace(PLAIN, batch_size=4, epochs=3, momentum=0.9, accumulate=accumulate, schedules=courses)
    told: list[Point] = []
    history = History(every=3, on_point=told.append)
    trainer, loader, _ = trainer_of(Net(), config, objective=kept, history=history)
    trainer.add_event_handler(Events.EPOCH_STARTED, trainer.state.metrics_of_epoch.reset)
    trainer.run(loader, max_epochs=3, epoch_length=7)
    assert told == history.points
    assert [point.step for point in told] == [4, 7, 11, 14, 18, 21]
    begin = 0
    for point in told:
        assert point.train_loss == pytest.approx(float(torch.stack(losses[begin : point.step]).mean()), rel=1e-12)
        begin = point.step
        assert point.values == {
            course.name: course.at(point.step - 1 if course.each_step else (point.step - 1) // 7 * 7)
            for course in scheduled(config, 21)
        }


def test_weights_that_are_no_numbers_are_told() -> None:
    model = Net()
    check_weights(model, 1)
    with torch.no_grad():
        model.layers[1].bias[0] = math.inf
    with pytest.raises(DivergedError, match="epoch 2"):
        check_weights(model, 2)


def test_small_gradients_of_fp16_are_scaled() -> None:
    """A gradient of 2⁻³⁰ is zero in fp16, and is not where losses are scaled; a step with an infinite gradient is left out."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, images_nchw: Tensor) -> dict[str, Tensor]:
            return {"logits": self.weight.half().expand(len(images_nchw), 2)}

    def moved(factor: float, scale: float) -> tuple[bool, float]:
        half, scaler = Half(), torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
        trainer, loader, _ = trainer_of(
            half, replace(PLAIN, batch_size=14, epochs=1), scaler=scaler,
            objective=lambda outputs, _targets: outputs["logits"].float().mean() * factor,
        )  # fmt: skip
        trainer.run(loader, max_epochs=1, epoch_length=1)
        return bool((half.weight != 0).any()), scaler.get_scale()

    assert moved(2.0**-30, 1.0) == (False, 2.0)
    assert moved(2.0**-30, 2.0**16) == (True, 2.0**17)
    assert moved(2.0**10, 2.0**16) == (False, 2.0**15)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 7, 9])
def test_a_batch_is_split_into_all_its_images(pieces: int) -> None:
    batch = Batch(torch.arange(7).view(7, 1, 1, 1), torch.arange(7))
    parts = batch.split(pieces)
    assert len(parts) <= pieces
    assert torch.equal(torch.cat([part.images_nchw for part in parts]), batch.images_nchw)
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
