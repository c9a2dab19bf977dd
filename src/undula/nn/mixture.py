r"""A mixture of experts: a gate that chooses a few for each protein, and what it costs to use them.

The gate says how much each expert counts, `Dispatch` which rows (points) go to which expert, and
`mixture` adds up what they answer. An expert that nobody chose is not called and costs nothing.

In training on several processes an expert may be chosen on one and not on another, so the
processes must be told to expect parameters without gradient: Fabric's strategy
``ddp_find_unused_parameters_true``. An expert that no process chose then keeps the gradient None,
as on one process, and the optimiser leaves it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.nn.rows import rows_of

_WEYL, _FIRST, _SECOND = (
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""The constants of SplitMix64, as signed integers."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How experts are chosen.

    Attributes:
        experts: How many there are, N_E.
        chosen: How many answer for one protein, N_K; at most ``experts``.
        noise: Whether training adds noise to the choice.
        balance: Whose mean the balance loss pushes down where an expert is chosen often: the
            ``full`` softmax over all experts, or the ``paper``'s, which is zero (and has no
            gradient) for experts that were not chosen.
        memory: Share of the past in the balance loss's Γ, an exponential average over steps,
            from 0 (this batch alone) to below 1. A batch of 4 to 32 proteins says little.
    """

    experts: int = 4
    chosen: int = 2
    noise: bool = True
    balance: Literal["full", "paper"] = "full"
    memory: float = 0.9

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.experts:
            raise UsageError(
                f"chosen of a gate must be 1 to experts ({self.experts}), not {self.chosen}"
            )
        if not 0 <= self.memory < 1:
            raise UsageError(f"memory of a gate must be 0 to below 1, not {self.memory}")


@dataclass(frozen=True, eq=False)
class Gating:
    """Which experts answer for which protein, and how much each counts.

    Attributes:
        weights: G, one row per protein; 0 for experts not chosen, the others sum to 1.
        chosen: The experts that answer, the one that counts most first; of equals the one with
            the lower number.
        probabilities: Softmax over all experts, before the choice, with the same noise.
    """

    weights: Float[Tensor, "proteins experts"]
    chosen: Int[Tensor, "proteins k"]
    probabilities: Float[Tensor, "proteins experts"]


class Gate(nn.Module):
    r"""Choose experts by a protein's code: noisy top-k.

    .. math::
        G = \mathrm{softmax}(\mathrm{TopK}(W_g h + \epsilon \odot \ln(1 + e^{W_n h}), N_K)),
        \qquad \epsilon \sim \mathcal{N}(0, 1)

    ==================  ============================================
    h                   ``code``
    W_g, W_n            ``choice``, ``spread``
    ε                   `gate_noise`; 0 in evaluation mode
    TopK                all but the k largest become −∞
    G                   ``Gating.weights``
    ==================  ============================================

    A fresh gate has noise of deviation ln 2 for every protein (W_n = 0), and W_g from
    N(0, 1 / size of h). The buffer ``seed`` is drawn with the weights and stored with them, so
    that a resumed run draws the noise it would have drawn.

    Args:
        config: Sizes and choices.
        size: Numbers in a code, φ_P.
        generator: Draws the weights and the seed of the noise, on the CPU.

    Source: MoE-DSR, eq. 5, after Shazeer et al. (2017), who start W_g at 0 too: without noise
    all proteins would then share their experts.
    """

    seed: Tensor
    share: Tensor

    def __init__(self, config: GateConfig, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        drawn = torch.randn(config.experts, size, generator=generator)
        self.choice = nn.Parameter(drawn / math.sqrt(max(size, 1)))
        self.spread = nn.Parameter(torch.zeros(config.experts, size)) if config.noise else None
        self.register_buffer("seed", torch.randint(2**62, (), generator=generator))
        self.register_buffer("share", torch.full((config.experts,), 1 / config.experts))

    def forward(
        self,
        code: Float[Tensor, "proteins size"],
        *,
        keys: Int[Tensor, " proteins"] | None = None,
        step: int = 0,
    ) -> Gating:
        """Choose the experts of each protein.

        Args:
            code: Invariant numbers h, one row per protein.
            keys: A number that belongs to each protein, such as its place in the data set. With
                the step it decides the noise, wherever in a batch and on whichever process the
                protein is met. Needed in training with noise, otherwise without effect.
            step: Steps of the optimiser done so far.

        Returns:
            One row per protein, each from its own code alone. Under autocast in full precision.

        Raises:
            ValueError: Training with noise, but no keys.
        """
        with torch.autocast(code.device.type, enabled=False):
            code = code.to(self.choice.dtype)
            logits = functional.linear(code, self.choice)
            if self.training and self.spread is not None:
                if keys is None:
                    raise ValueError("a gate with noise needs the keys of the proteins to train")
                noise = gate_noise(self.seed, step, keys, self.config.experts).to(logits)
                logits = logits + noise * functional.softplus(functional.linear(code, self.spread))
            order = logits.detach().sort(dim=1, descending=True, stable=True).indices
            chosen = order[:, : self.config.chosen]
            among = logits.gather(1, chosen).softmax(dim=1)
            return Gating(
                weights=torch.zeros_like(logits).scatter(1, chosen, among),
                chosen=chosen,
                probabilities=logits.softmax(dim=1),
            )

    def balance(self, gating: Gating) -> Float[Tensor, ""]:
        r"""Compute the balance loss in the configured form, with Γ averaged over steps.

        .. math:: \bar\Gamma \leftarrow m \bar\Gamma + (1 - m) \Gamma

        In training mode this moves the buffer ``share`` (:math:`\bar\Gamma`, at first uniform)
        and averages over the processes, all of which must call it. In evaluation mode it is
        `balance_loss` of the proteins at hand and waits for nobody.

        Args:
            gating: What `forward` returned for the batch.
        """
        if not self.training:
            return balance_loss(gating, self.config.balance)
        share, probability = expert_load(gating, self.config.balance, across_processes=True)
        with torch.no_grad():
            self.share.lerp_(share.to(self.share), 1 - self.config.memory)
        return _balance(self.share.to(probability, copy=True), probability)


def expert_load(
    gating: Gating, form: Literal["full", "paper"] = "full", *, across_processes: bool = False
) -> tuple[Float[Tensor, " experts"], Float[Tensor, " experts"]]:
    r"""Compute how often each expert counts most, and how probable it is on average.

    .. math::
        \Gamma_i = \frac1B \sum_p \mathbb{1}\{\arg\max G(P_p) = i\}, \qquad
        \pi_i = \frac1B \sum_p \pi_i(P_p)

    Args:
        gating: Of one or more proteins.
        form: π of the ``full`` softmax, or the ``paper``'s, after the choice.
        across_processes: Whether the means run over the proteins of all processes, where there
            are several; then all of them must call this.

    Returns:
        Γ, without gradient, and π; each sums to 1. Of several processes' π each has the gradient
        of its own part times the number of processes: averaging the gradients of the processes,
        as DDP does, gives that of the whole. (A collective operation in the backward pass could
        meet those of DDP in another order on another process.)
    """
    per_protein = gating.probabilities if form == "full" else gating.weights
    experts = per_protein.shape[1]
    own = per_protein.sum(dim=0)
    totals = torch.cat(
        (
            torch.bincount(gating.chosen[:, 0], minlength=experts).to(own),
            own.detach(),
            own.new_tensor([len(per_protein)]),
        )
    )
    processes = 1
    if across_processes and torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        torch.distributed.all_reduce(totals)
    share, probability = (totals[:-1] / totals[-1]).split(experts)
    part = own * (processes / totals[-1])
    return share, probability + (part - part.detach())


def balance_loss(gating: Gating, form: Literal["full", "paper"] = "full") -> Float[Tensor, ""]:
    r"""Compute how unevenly the experts are used: the loss of the Switch Transformer.

    .. math:: L = N_E \sum_i \Gamma_i \, \pi_i

    ==========  ==========================================================
    Γ_i         share of proteins for which expert i counts most
    π_i         mean over proteins of its probability, see ``form``
    N_E         how many experts there are
    ==========  ==========================================================

    It is 1 where either is uniform and at most N_E; 1 is not a lower bound. Only π has a
    gradient.

    Args:
        gating: Of one or more proteins.
        form: With the ``full`` softmax the gradient raises an expert that nobody chose; in the
            ``paper``'s form no gradient reaches it.

    Source: MoE-DSR, which takes π after the choice; the full form is that of Fedus et al. (2022).
    """
    return _balance(*expert_load(gating, form))


def _balance(
    share: Float[Tensor, " experts"], probability: Float[Tensor, " experts"]
) -> Float[Tensor, ""]:
    return len(share) * (share * probability).sum()


def gate_noise(
    seed: Int[Tensor, ""], step: int, keys: Int[Tensor, " proteins"], experts: int
) -> Float[Tensor, "proteins experts"]:
    r"""Draw normal numbers that depend on seed, step, key and expert, and on nothing else.

    .. math:: \epsilon = \sqrt{-2 \ln(1 - u)} \cos 2 \pi v

    with u and v the upper 53 bits of hashes by SplitMix64's finisher, over 2⁵³. No state: the
    same numbers in any order, on any process, however often a run was interrupted.

    Args:
        seed: Of the run.
        step: Steps done so far.
        keys: One for each protein; equal keys give equal noise.
        experts: Numbers for each protein.

    Returns:
        Standard normal numbers in float64, on the device of the keys.

    Source: Steele, Lea, Flood (2014), SplitMix; Box and Muller (1958).
    """
    counter = torch.arange(experts, device=keys.device)
    state = _hashed(_hashed(_hashed(seed.to(keys.device), 0), step), keys)[:, None]
    first, second = (
        _shifted(_hashed(state, 2 * counter + word), 11).double() / 2**53 for word in (0, 1)
    )
    return (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)


def _hashed(state: Int[Tensor, "*state"], word: Int[Tensor, "*word"] | int) -> Int[Tensor, "*out"]:
    """Return a hash of 64 bits of a state and a word; products run over as they should."""
    state = (state + word + 1) * _WEYL
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(number: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """Shift to the right and fill up with zeros."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)


class Dispatch:
    """Which rows go to which expert.

    .. code-block:: python

        dispatch = Dispatch(gate(code), owner)
        for expert in dispatch.active:
            rows, weight = dispatch.rows(expert)
            out.index_add_(0, rows, weight * experts[expert](points[rows]))

    Making one waits once for the device.

    Attributes:
        active: The experts that some protein chose, ascending; only these need be called.
        count: How many rows there are.
    """

    def __init__(self, gating: Gating, owner: Int[Tensor, " rows"]) -> None:
        """Sort rows by expert.

        Args:
            gating: Of the proteins.
            owner: Which protein each row belongs to, in any order.
        """
        experts = gating.weights.shape[1]
        wanted = gating.chosen[owner].flatten()
        by_expert, order = wanted.sort(stable=True)
        self._rows = order.div(gating.chosen.shape[1], rounding_mode="floor")
        place = owner[self._rows] * experts + by_expert
        self._weights = rows_of(gating.weights.reshape(-1, 1), place)[:, 0]
        tallies = [
            torch.bincount(one, minlength=experts) for one in (wanted, gating.chosen.flatten())
        ]
        rows, proteins = torch.stack(tallies).tolist()
        self._ends = torch.tensor(rows).cumsum(0).tolist()
        self.active = tuple(expert for expert, chosen in enumerate(proteins) if chosen)
        self.count = len(owner)

    def rows(self, expert: int) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Return the rows that go to an expert, ascending, and how much it counts for each."""
        part = slice(self._ends[expert - 1] if expert else 0, self._ends[expert])
        return self._rows[part], self._weights[part]


def mixture(
    experts: Sequence[Callable[..., Tensor | tuple[Tensor, ...]]] | nn.ModuleList,
    dispatch: Dispatch,
    *row_tensors: Float[Tensor, "rows ..."] | Int[Tensor, "rows ..."],
) -> tuple[Tensor, ...]:
    r"""Add up what the chosen experts answer.

    .. math:: \sum_i G_i(P_r) \, E_i(\text{row } r)

    Each chosen expert is called once, with all its rows; those of one protein stay together if
    they were. The gradient of a sum is the sum of gradients, so experts may return values and
    spatial gradients alike (``ImplicitNetwork.value_and_gradient``).

    Args:
        experts: What to call with the rows of ``row_tensors``; each returns one tensor or a
            tuple of them, one row per row.
        dispatch: Which rows go where.
        row_tensors: What the experts are called with, one row per row of the dispatch.

    Returns:
        One tensor for each that an expert returns. Experts that were not chosen get no gradient.

    Raises:
        ValueError: There are no proteins, so nobody says what an answer looks like.
    """
    totals: tuple[Tensor, ...] = ()
    for expert in dispatch.active:
        rows, weight = dispatch.rows(expert)
        answer = experts[expert](*(tensor[rows] for tensor in row_tensors))
        parts = answer if isinstance(answer, tuple) else (answer,)
        if not totals:
            totals = tuple(part.new_zeros((dispatch.count, *part.shape[1:])) for part in parts)
        for total, part in zip(totals, parts, strict=True):
            total.index_add_(0, rows, part * weight.to(part).reshape(-1, *[1] * (part.ndim - 1)))
    if not totals:
        raise ValueError("a mixture of experts needs at least one protein")
    return totals
