from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from undula.errors import Notice
from undula.learn.fit import FitResult, fit
from undula.learn.recipe import FitConfig
from undula.learn.task import ParameterGroup


class Line:
    """Fit y = 2x - 1 with a small network, a latent code, dropout and batch statistics."""

    def __init__(self, seed: int = 0, *, at_step: Callable[[int], None] | None = None) -> None:
        torch.manual_seed(seed)
        self.module = nn.ModuleDict(
            {
                "network": nn.Sequential(
                    nn.Linear(2, 16),
                    nn.BatchNorm1d(16),
                    nn.SiLU(),
                    nn.Dropout(0.1),
                    nn.Linear(16, 1),
                ),
                "codes": nn.Embedding(1, 1),
            }
        )
        self.at_step = at_step or (lambda step: None)
        self.at_evaluation: Callable[[], None] = lambda: None

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup(name="network", parameters=list(self.module["network"].parameters())),
            ParameterGroup(
                name="codes",
                parameters=list(self.module["codes"].parameters()),
                learning_rate_factor=10.0,
            ),
        ]

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.at_step(step)
        return {"x": torch.rand(8, 1, generator=generator)}

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x"]
        square = (self.predict(x) - (2 * x - 1)).square().mean()
        prior = self.module["codes"].weight.square().mean()
        return square + 1e-3 * prior, {"square": square, "prior": prior}

    def evaluate(self) -> dict[str, float]:
        assert not self.module.training
        self.at_evaluation()
        x = torch.linspace(0, 1, 11)[:, None]
        return {"error": float((self.predict(x) - (2 * x - 1)).abs().mean())}

    def predict(self, x: Tensor) -> Tensor:
        code = self.module["codes"](torch.zeros(len(x), dtype=torch.long))
        return self.module["network"](torch.cat((x, code), dim=1))


class Recorder:
    """Remember what was said."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def started(self, step: int, steps: int) -> None:
        self.events.append(("started", step))

    def advanced(self, step: int, loss: float) -> None:
        self.events.append(("advanced", step))

    def evaluated(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self.events.append(("evaluated", step))

    def noticed(self, notice: Notice) -> None:
        self.events.append(("noticed", notice.code))

    def stopped(self) -> None:
        self.events.append(("stopped", None))

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.events if name == kind]


SETTINGS = {
    "steps": 20,
    "learning_rate": 1e-2,
    "evaluate_every": 5,
    "checkpoint_every": 4,
    "record_every": 3,
    "accelerator": "cpu",
}


@pytest.fixture(scope="session")
def base_settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def line() -> type[Line]:
    return Line


@pytest.fixture
def train(recorder) -> Callable[..., FitResult]:
    def run(task: Line, folder: Path, configuration: Any = None, **changes: Any) -> FitResult:
        config = FitConfig(**{**SETTINGS, **changes})
        return fit(task, config, folder, progress=recorder, configuration=configuration)

    return run
