"""The training loop, over Lightning Fabric: any device, resumable, byte for byte repeatable."""

from __future__ import annotations

import difflib
import json
import math
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from undula import atomic
from undula.errors import InputError, Notice, UsageError
from undula.learn.average import update_average, weights_from
from undula.learn.checkpoint import (
    Checkpoint,
    checkpoint_place,
    load_checkpoint,
    load_into,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    remove_checkpoints_after,
    restore_optimizer,
    save_checkpoint,
    save_weights,
)
from undula.learn.interruption import Interrupted, Interruption, StopNow
from undula.learn.progress import Progress, SilentProgress
from undula.learn.recipe import FitConfig, batch_seed, check_same, learning_rate
from undula.learn.task import Task, moved

Result = TypeVar("Result")


class DivergedError(InputError):
    """The loss or its gradient is not finite: the data or the configuration cannot serve."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training left behind; the module holds the final weights, in evaluation mode.

    Attributes:
        step: The step the final weights are of.
        weights: Their file.
        metrics: Validation measures at that step; None for a value that was not finite.
        history: ``training`` and ``validation`` records, also in ``history.json``.
        notices: What was assumed, skipped or repaired.
    """

    step: int
    weights: Path
    metrics: dict[str, float | None]
    history: dict[str, list[dict[str, Any]]]
    notices: list[Notice]


def fit(
    task: Task,
    config: FitConfig,
    folder: Path,
    *,
    progress: Progress,
    configuration: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a task's module, or go on where an earlier call in the same folder stopped.

    On a CPU the same start, seed, machine and versions give the same bytes, however often the
    run was stopped. Call it before other torch work in the process: numbers below 1e-38 are
    set to zero from here on (they would make trained softplus layers 8 times slower), and
    threads that exist already do not take part in that.

    Args:
        task: The problem; its module must start from the same weights in every call.
        config: How to train.
        folder: Receives ``checkpoints/``, ``history.json`` and at the end
            ``weights.safetensors``.
        progress: Hears what happens, on the first process only.
        configuration: JSON values that describe the task; a resumed run must have equal ones,
            and they are stored with the weights.

    Returns:
        The final weights' place and measures, the history, and notices.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a checkpoint of the last finished step is stored.
        DivergedError: A loss or gradient is not finite; the last checkpoint stays.
        UsageError: The folder holds a run of another configuration, or there is no such monitor.
        InputError: All checkpoints in the folder are damaged, or of another architecture.
        MachineError: The folder cannot be written.
    """
    from lightning.fabric import Fabric

    torch.set_flush_denormal(True)
    strategy = config.strategy
    if strategy == "auto" and (config.nodes > 1 or config.devices not in (1, "1", "auto")):
        # A mixture leaves the experts that nobody chose without gradient.
        strategy = "ddp_find_unused_parameters_true"
    fabric = Fabric(
        accelerator=config.accelerator,
        strategy=strategy,
        devices=config.devices,
        num_nodes=config.nodes,
        precision=config.precision,
    )
    fabric.launch()
    listener = progress if fabric.is_global_zero else SilentProgress()
    with Interruption() as interruption:
        run = _Run(fabric, task, config, folder, listener, interruption, configuration or {})
        run.resume()
        listener.started(run.position.step, config.steps)
        try:
            run.train()
        finally:
            listener.stopped()
        return run.finish()


@dataclass(kw_only=True)
class _Position:
    """Where a run stands, besides its tensors: the ``state.json`` of a checkpoint."""

    step: int = 0
    evaluated: int = -1
    history: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"training": [], "validation": []}
    )
    sums: dict[str, list[float]] = field(default_factory=dict)


class _Forward(nn.Module):
    """A module that computes whatever it is given, so that DDP and autocast see every loss."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[[], Result]) -> Result:
        return compute()


class _Run:
    """One training in one folder."""

    def __init__(
        self,
        fabric: Any,
        task: Task,
        config: FitConfig,
        folder: Path,
        progress: Progress,
        interruption: Interruption,
        configuration: Mapping[str, Any],
    ) -> None:
        self.fabric, self.task, self.config, self.folder = fabric, task, config, folder
        self.progress, self.interruption = progress, interruption
        described = {"fit": asdict(config), "task": configuration, "processes": fabric.world_size}
        self.configuration: dict[str, Any] = json.loads(json.dumps(described))
        self.names, self.factors, groups = _groups(task)
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.model, self.stepper = fabric.setup(_Forward(task.module), self.optimizer)
        self.average: dict[str, Tensor] | None = None
        if config.ema_decay:
            state = task.module.state_dict()
            self.average = {name: tensor.detach().clone() for name, tensor in state.items()}
        self.position = _Position()
        self.saved = (-1, -1)
        self.stopping = False
        self.notices: list[Notice] = []

    def resume(self) -> None:
        """Go to the newest valid checkpoint; if there is none, see whether one can be written."""
        found: Checkpoint | None = None
        if self.fabric.is_global_zero:
            found, notices = newest_checkpoint(self.folder)
            for notice in notices:
                self._notice(notice)
        step = self.fabric.broadcast(None if found is None else found.step)
        if step is None:
            if self.fabric.is_global_zero:
                atomic.write_json(self.folder / "history.json", self.position.history)
            return
        place = checkpoint_place(self.folder, step)
        found = found or load_checkpoint(place)
        check_same(found.state["configuration"], self.configuration, self.folder)
        self.position = _Position(**found.state["position"])
        load_into(self.task.module, found.tensors["weights"], place / "weights.safetensors")
        restore_optimizer(self.optimizer, found.tensors["optimizer"], self.names)
        if self.average is not None:
            for name, tensor in found.tensors["average"].items():
                self.average[name].copy_(tensor)
        self.saved = step, self.position.evaluated
        text = f"training goes on from step {step}"
        self._notice(Notice(code="training-resumed", message=text, place=str(self.folder)))
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            remove_checkpoints_after(self.folder, step)

    def train(self) -> None:
        """Take steps, and between them evaluate, store and listen."""
        self.task.module.train()
        while True:
            position = self.position
            improved = False
            if self._due(self.config.evaluate_every) and position.evaluated != position.step:
                improved = self.evaluate()
            due = position.step > 0 and self._due(self.config.checkpoint_every)
            stored = self.saved == (position.step, position.evaluated)
            if improved or ((due or self.stopping) and not stored):
                self.save()
            if self.stopping:
                raise Interrupted(
                    f"training was stopped at step {position.step}; the same command goes on "
                    f"from there ({self.folder})",
                    self.interruption.signal_number or signal.SIGTERM,
                )
            if position.step == self.config.steps:
                return
            self.step()

    def step(self) -> None:
        """Take one step of the optimiser."""
        config, position, process = self.config, self.position, self.fabric.global_rank
        seed = batch_seed(config.seed, position.step, process)
        rate = learning_rate(config, position.step)
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate * factor
        self.stepper.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        told: list[dict[str, Tensor]] = []
        for part in range(config.micro_batches):
            part_seed = batch_seed(config.seed, position.step, process, part)
            drawn = self.task.batch(position.step, torch.Generator().manual_seed(part_seed))
            compute = partial(self.task.loss, moved(drawn, self.fabric.device), position.step)
            last = part == config.micro_batches - 1
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                loss, parts = self.model(compute)
                self.fabric.backward(loss / config.micro_batches)
            told.append({"loss": loss, **{f"loss.{name}": parts[name] for name in sorted(parts)}})
        longest = math.inf if config.clip_norm is None else config.clip_norm
        norm = self.fabric.clip_gradients(
            self.model, self.stepper, max_norm=longest, error_if_nonfinite=False
        )
        values = self._shared(told, norm)
        if not all(map(math.isfinite, values.values())):
            raise DivergedError(
                f"{self.folder}: the loss or its gradient is not finite at step {position.step} "
                f"(batch seed {seed}); the last checkpoint is kept, try a lower learning rate, "
                "clip_norm, or look at that batch"
            )
        self.stepper.step()
        if self.average is not None:
            update_average(self.average, self.task.module, config.ema_decay, position.step)
        position.step += 1
        self._record({**values, "learning_rate": rate})
        self.progress.advanced(position.step, values["loss"])

    def evaluate(self) -> bool:
        """Measure on validation data and say whether this is the best so far."""
        measured: dict[str, float | None] | None = None
        if self.fabric.is_global_zero:
            try:
                measured = self._measured()
            except StopNow:
                measured = None
        measured = self.fabric.broadcast(measured)
        if measured is None:
            self.stopping = True
            return False
        position, monitor = self.position, self.config.monitor
        if monitor is not None and monitor not in measured:
            near = difflib.get_close_matches(monitor, measured, 1, 0) or ["none"]
            raise UsageError(f"the task measures no {monitor!r}; the nearest is {near[0]!r}")
        position.evaluated = position.step
        position.history["validation"].append({"step": position.step, **measured})
        self.progress.evaluated(position.step, measured)
        return self._best(position.step) == position.step

    def save(self) -> None:
        """Store a checkpoint and remove those that are no longer needed."""
        step, earlier = self.position.step, self.saved[0]
        self.saved = step, self.position.evaluated
        if not self.fabric.is_global_zero:
            return
        tensors = {
            "weights": self.task.module.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        if self.average is not None:
            tensors["average"] = self.average
        state = {"configuration": self.configuration, "position": asdict(self.position)}
        save_checkpoint(self.folder, Checkpoint(step=step, tensors=tensors, state=state))
        atomic.write_json(self.folder / "history.json", self.position.history)
        best = (self._best(earlier), self._best(step))
        prune_checkpoints(self.folder, [one for one in best if one is not None])

    def finish(self) -> FitResult:
        """Store the final weights and leave them in the module."""
        position, path = self.position, self.folder / "weights.safetensors"
        chosen = position.step if self.config.keep == "last" else self._best(position.step)
        if chosen is None:
            raise DivergedError(
                f"{self.folder}: {self.config.monitor} was not finite at any evaluation, so no "
                "weights are the best"
            )
        self.fabric.barrier()
        place = checkpoint_place(self.folder, chosen)
        kept = load_checkpoint(place).tensors
        tensors = kept.get("average", kept["weights"])
        load_into(self.task.module, tensors, place)
        self.task.module.eval()
        measured = {m["step"]: m for m in position.history["validation"]}[chosen]
        metrics = {name: value for name, value in measured.items() if name != "step"}
        metadata = {"configuration": self.configuration, "step": chosen, "metrics": metrics}
        if self.fabric.is_global_zero:
            save_weights(path, tensors, metadata)
        self.fabric.barrier()
        return FitResult(
            step=chosen,
            weights=path,
            metrics=metrics,
            history=position.history,
            notices=self.notices,
        )

    def _measured(self) -> dict[str, float | None]:
        """Evaluate the averaged weights if there are any, else the present ones."""
        module = self.task.module
        lent = nullcontext() if self.average is None else weights_from(module, self.average)
        torch.manual_seed(batch_seed(self.config.seed, self.position.step, -1))
        module.eval()
        try:
            with lent, torch.no_grad(), self.interruption.at_once():
                measures = self.task.evaluate()
        finally:
            module.train()
        return {
            name: float(value) if math.isfinite(value) else None for name, value in measures.items()
        }

    def _shared(self, told: list[dict[str, Tensor]], norm: Tensor) -> dict[str, float]:
        """Average what the processes saw in a step, and learn whether any of them must stop."""
        names = list(told[0])
        means = [torch.stack([part[name].detach() for part in told]).mean() for name in names]
        stop = norm.new_tensor(float(self.interruption.signal_number is not None))
        numbers = torch.stack([mean.to(norm) for mean in (*means, norm, stop)])
        *values, length, stopping = self.fabric.all_reduce(numbers, reduce_op="mean").tolist()
        self.stopping = stopping > 0
        return {**dict(zip(names, values, strict=True)), "gradient_norm": length}

    def _record(self, values: Mapping[str, float]) -> None:
        """Add a step to the record, which holds means over ``record_every`` steps."""
        position = self.position
        for name, value in values.items():
            total = position.sums.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1
        if self._due(self.config.record_every):
            means = {name: total / count for name, (total, count) in position.sums.items()}
            position.history["training"].append({"step": position.step, **means})
            position.sums = {}

    def _due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, is due."""
        return self.position.step % every == 0 or self.position.step == self.config.steps

    def _best(self, until: int) -> int | None:
        """Return the step of the best evaluation up to a step; the first of equals."""
        monitor, sign = self.config.monitor, 1 if self.config.minimise else -1
        if monitor is None:
            return None
        records = self.position.history["validation"]
        values = [
            (sign * record[monitor], record["step"])
            for record in records
            if record["step"] <= until and record[monitor] is not None
        ]
        return min(values)[1] if values else None

    def _notice(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.progress.noticed(notice)


def _groups(task: Task) -> tuple[list[str], list[float], list[dict[str, Any]]]:
    """Return the parameters' names, the groups' factors and the groups for the optimiser."""
    names = {
        id(parameter): name
        for name, parameter in task.module.named_parameters()
        if parameter.requires_grad
    }
    groups = task.parameter_groups()
    given = [id(parameter) for group in groups for parameter in group.parameters]
    if sorted(given) != sorted(names):
        twice = {names.get(one, "a foreign parameter") for one in given if given.count(one) > 1}
        lost = {name for one, name in names.items() if one not in given}
        foreign = {"a foreign parameter" for one in given if one not in names}
        raise ValueError(
            "every trainable parameter belongs into exactly one group; look at "
            + ", ".join(sorted(twice | lost | foreign))
        )
    return (
        [names[one] for one in given],
        [group.learning_rate_factor for group in groups],
        [{"params": list(group.parameters)} for group in groups],
    )
