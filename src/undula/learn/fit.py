"""The training loop, over Lightning Fabric: any device, resumable, byte for byte repeatable."""

from __future__ import annotations

import difflib
import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from undula import atomic
from undula.errors import InputError, MachineError, Notice, UsageError, one_line
from undula.estimates import with_less
from undula.learn.average import update_average, weights_from
from undula.learn.checkpoint import (
    Checkpoint,
    checkpoint_place,
    checkpoint_steps,
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
from undula.learn.plateau import Plateau, judged
from undula.learn.progress import Progress, SilentProgress
from undula.learn.recipe import FitConfig, batch_seed, check_same, learning_rate, timeless
from undula.learn.task import Task, moved
from undula.locks import claimed

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
        plateau: Why a training in cycles ended, also in ``plateau.json``; none without cycles.
    """

    step: int
    weights: Path
    metrics: dict[str, float | None]
    history: dict[str, list[dict[str, Any]]]
    notices: list[Notice]
    plateau: Plateau | None = None

    def told(self) -> dict[str, Any]:
        """Return for a provenance why a training in cycles ended; nothing of one without."""
        return {} if self.plateau is None else {"plateau": self.plateau.plain()}


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
            and they are stored with the weights. The plateau alone may be another: a run that
            would have gone on under it goes on.

    Returns:
        The final weights' place and measures, the history, and notices.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a checkpoint of the last finished step is stored.
        DivergedError: A loss or gradient is not finite; the last checkpoint stays.
        UsageError: The folder holds a run of another configuration, or one that went on beyond
            where this one ends; or there is no such monitor or measure.
        InputError: All checkpoints in the folder are damaged, or of another architecture.
        MachineError: The folder cannot be written, or another process writes there; another
            process of this training has ended.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    torch.set_flush_denormal(True)
    strategy = config.strategy
    if strategy == "auto" and (config.nodes > 1 or config.devices not in (1, "1", "auto")):
        # A mixture leaves the experts that nobody chose without gradient.
        strategy = "ddp_find_unused_parameters_true"
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            strategy=strategy,
            devices=config.devices,
            num_nodes=config.nodes,
            precision=config.precision,
        )
    except (ValueError, TypeError, KeyError, RuntimeError, MisconfigurationException) as error:
        raise UsageError(
            "fit.accelerator, fit.devices, fit.nodes, fit.strategy and fit.precision cannot be had "
            f"here together: {one_line(error)}"
        ) from error
    fabric.launch()
    listener = progress if fabric.is_global_zero else SilentProgress()
    with ExitStack() as held:
        interruption = held.enter_context(Interruption())
        held.enter_context(_lost_processes_named(folder, fabric.world_size))
        if fabric.is_global_zero:
            held.enter_context(claimed(folder))
        run = _Run(fabric, task, config, folder, listener, interruption, configuration or {})
        run.resume()
        try:
            run.train()
        finally:
            listener.stopped()
        result = run.finish()
        if interruption.signal_number is not None:
            raise Interrupted(
                f"training was stopped after its last step; the weights are stored ({folder})",
                interruption.signal_number,
            )
        return result


@contextmanager
def _lost_processes_named(folder: Path, processes: int) -> Iterator[None]:
    """Say in a sentence that another process of a training is gone: all of them end then."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or any(
            library in str(error) for library in ("gloo", "NCCL", "Connection closed by peer")
        )
        if processes == 1 or not lost:
            raise
        raise MachineError(
            f"another process of the training in {folder} has ended; its last checkpoint is "
            "kept, and the same command goes on from there"
        ) from error


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
        described = {"fit": config.plain(), "task": configuration, "processes": fabric.world_size}
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
        try:
            self._restore(found, place)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(f"{place} is damaged, or of another training ({what})") from error
        self.saved = step, self.position.evaluated
        text = f"training goes on from step {step}"
        self._notice(Notice(code="training-resumed", message=text, place=str(self.folder)))
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            remove_checkpoints_after(self.folder, step)

    def _restore(self, found: Checkpoint, place: Path) -> None:
        """Put back what a checkpoint holds."""
        before, now = (timeless(one) for one in (found.state["configuration"], self.configuration))
        check_same(before, now, self.folder)
        self.position = _Position(**found.state["position"])
        self._check_not_beyond()
        load_into(self.task.module, found.tensors["weights"], place / "weights.safetensors")
        restore_optimizer(self.optimizer, found.tensors["optimizer"], self.names)
        if self.average is not None:
            for name, tensor in found.tensors["average"].items():
                self.average[name].copy_(tensor)

    def train(self) -> None:
        """Take steps, and between them evaluate, store and listen."""
        self.task.module.train()
        cycle = self.config.steps
        self.progress.started(self.position.step, max(1, -(-self.position.step // cycle)) * cycle)
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
            if self._ended():
                return
            if position.step and position.step % cycle == 0:
                self.progress.started(position.step, position.step + cycle)
            self.step()

    def step(self) -> None:
        """Take one step of the optimiser."""
        config, position = self.config, self.position
        seed = batch_seed(config.seed, position.step, self.fabric.global_rank)
        rate = learning_rate(config, position.step % config.steps)
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate * factor

        def gradients() -> list[dict[str, Tensor]] | None:
            self.stepper.zero_grad(set_to_none=True)
            torch.manual_seed(seed)
            return self._told()

        # A smaller batch would be another training: once more the same, what was kept let go.
        # Where several processes wait for each other, none may go back alone.
        alone = self.fabric.world_size == 1
        told = with_less(gradients, gradients, self._too_large) if alone else gradients()
        if told is None:
            self.stopping = True
            return
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

    def _told(self) -> list[dict[str, Tensor]] | None:
        """Add up the gradients of all parts of a step; None where a signal broke it off.

        A step may take longer than whoever stops us has patience. One process alone drops it, and
        what layers keep besides their weights is put back; several finish it together.
        """
        buffers = list(self.task.module.buffers())
        before = [buffer.clone() for buffer in buffers]
        alone = self.fabric.world_size == 1
        try:
            with self.interruption.at_once() if alone else nullcontext():
                return [self._part(part) for part in range(self.config.micro_batches)]
        except (StopNow, MemoryError, RuntimeError) as error:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            if not isinstance(error, StopNow):
                raise
            return None

    def _too_large(self) -> str:
        """Say what to do where a step does not fit into memory."""
        return (
            f"{self.folder}: the memory was not enough for step {self.position.step}, tried twice; "
            "the last checkpoint is kept, and --memory-limit names the batch that fits"
        )

    def _part(self, part: int) -> dict[str, Tensor]:
        """Add the gradient of a part of a step, and return its losses."""
        config, step = self.config, self.position.step
        seed = batch_seed(config.seed, step, self.fabric.global_rank, part)
        drawn = self.task.batch(step, torch.Generator().manual_seed(seed))
        compute = partial(self.task.loss, moved(drawn, self.fabric.device), step)
        last = part == config.micro_batches - 1
        with self.fabric.no_backward_sync(self.model, enabled=not last):
            loss, parts = self.model(compute)
            self.fabric.backward(loss / config.micro_batches)
        return {"loss": loss, **{f"loss.{name}": parts[name] for name in sorted(parts)}}

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
        position, rule = self.position, self.config.plateau
        for name in (self.config.monitor, None if rule is None else rule.measure):
            if name is not None and name not in measured:
                near = difflib.get_close_matches(name, measured, 1, 0) or ["none"]
                raise UsageError(f"the task measures no {name!r}; the nearest is {near[0]!r}")
        position.evaluated = position.step
        position.history["validation"].append({"step": position.step, **measured})
        self.progress.evaluated(position.step, measured)
        return self._best(position.step) == position.step

    def save(self) -> None:
        """Store a checkpoint and remove those that are no longer needed."""
        step = self.position.step
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
        self._tidy()

    def _tidy(self) -> None:
        """Write the history, and remove the checkpoints that are no longer needed.

        At the end once more: the run may have been killed between its last checkpoint and this.
        """
        atomic.write_json(self.folder / "history.json", self.position.history)
        newest = checkpoint_steps(self.folder)[-2:]
        best = [*(self._best(step) for step in newest), self._best_end()]
        prune_checkpoints(self.folder, [one for one in best if one is not None])

    def finish(self) -> FitResult:
        """Store the final weights and leave them in the module."""
        position, path = self.position, self.folder / "weights.safetensors"
        last = self._best_end() or position.step
        chosen = last if self.config.keep == "last" else self._best(position.step)
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
        plateau = self._plateau()
        if self.fabric.is_global_zero:
            self._tidy()
            if plateau is not None:
                atomic.write_json(self.folder / "plateau.json", plateau.plain())
            save_weights(path, tensors, metadata)
        self.fabric.barrier()
        return FitResult(
            step=chosen,
            weights=path,
            metrics=metrics,
            history=position.history,
            notices=self.notices,
            plateau=plateau,
        )

    def _ended(self) -> bool:
        """Whether the last step is done."""
        if self.position.step == 0 or self.position.step % self.config.steps:
            return False
        plateau = self._plateau()
        return plateau is None or plateau.ended

    def _plateau(self) -> Plateau | None:
        """Judge the cycles that are done; none without cycles."""
        config = self.config
        if config.plateau is None:
            return None
        return judged(self.position.history["validation"], config.steps, config.plateau)

    def _best_end(self) -> int | None:
        """Return the step of the best end of a cycle; none without one."""
        plateau = self._plateau()
        return None if plateau is None else plateau.best * self.config.steps or None

    def _check_not_beyond(self) -> None:
        """Raise where the run of a folder went on beyond where this one ends."""
        plateau, step, cycle = self._plateau(), self.position.step, self.config.steps
        if plateau is not None and not plateau.ended:
            return
        last = cycle if plateau is None else len(plateau.ends) * cycle
        if step > last:
            raise UsageError(
                f"the run in {self.folder} has gone on to step {step}, this one would end at "
                f"{last}; ask for its plateau, or for another folder"
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
        """Whether something that happens every so many steps, and at ends of cycles, is due."""
        return self.position.step % every == 0 or self.position.step % self.config.steps == 0

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
