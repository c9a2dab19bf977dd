import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from undula.errors import UsageError
from undula.nn.mixture import (
    Dispatch,
    Gate,
    GateConfig,
    Gating,
    balance_loss,
    expert_load,
    gate_noise,
    mixture,
)

SIZE = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(proteins: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(proteins, SIZE, generator=generator(seed), dtype=torch.float64)


def made(training: bool = False, **options) -> Gate:
    """Make a gate in float64 whose noise differs from protein to protein."""
    gate = Gate(GateConfig(**options), SIZE, generator()).double().train(training)
    if gate.spread is not None:
        with torch.no_grad():
            gate.spread.normal_(generator=generator(2))
    return gate


def gating(logits: torch.Tensor, chosen: int) -> Gating:
    """Return the choice that given numbers make."""
    gate = Gate(GateConfig(experts=logits.shape[1], chosen=chosen), logits.shape[1], generator())
    gate.choice = nn.Parameter(torch.eye(logits.shape[1], dtype=logits.dtype))
    return gate.eval()(logits)


def test_the_chosen_few_are_the_largest_and_share_the_weight():
    found = gating(torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, -1.0, 0.0, -5.0]]).double(), 2)
    assert found.chosen.tolist() == [[1, 3], [0, 2]]
    share = math.exp(1) / (1 + math.exp(1))
    expected = torch.tensor([[0, share, 0, 1 - share], [share, 0, 1 - share, 0]]).double()
    torch.testing.assert_close(found.weights, expected)
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0]).double()
    torch.testing.assert_close(found.probabilities[0], logits.softmax(dim=0))


def test_all_may_be_chosen_and_then_it_is_a_softmax():
    found = made(experts=5, chosen=5)(codes(7))
    torch.testing.assert_close(found.weights, found.probabilities)
    assert (found.chosen.sort(dim=1).values == torch.arange(5)).all()


def test_of_equals_the_first_are_chosen():
    found = gating(torch.zeros(3, 6), 2)
    assert found.chosen.tolist() == [[0, 1]] * 3
    torch.testing.assert_close(found.weights[0], torch.tensor([0.5, 0.5, 0, 0, 0, 0]))


def test_no_noise_in_evaluation():
    gate = made()
    keys = torch.arange(9)
    assert torch.equal(gate(codes(9)).weights, gate(codes(9), keys=keys, step=4).weights)


def test_a_proteins_noise_depends_on_its_key_and_the_step_and_not_on_its_company():
    gate, code, keys = made(training=True, experts=8), codes(6), torch.tensor([4, 0, 9, 7, 4, 2])
    together = gate(code, keys=keys, step=3).probabilities
    for order in (torch.tensor([5, 2, 0]), torch.tensor([3]), torch.arange(6).flip(0)):
        part = gate(code[order], keys=keys[order], step=3).probabilities
        torch.testing.assert_close(part, together[order], rtol=0, atol=1e-15)
    assert (gate(code, keys=keys, step=4).probabilities != together).all()
    assert (gate(code, keys=keys + 1, step=3).probabilities != together).all()
    same = gate(code[:1].expand(6, -1), keys=keys, step=3).probabilities
    assert torch.equal(same[0], same[4])
    assert (same[0] != same[1]).all()


def test_the_noise_survives_storing_and_another_seed_gives_another():
    gate, again = made(training=True), Gate(GateConfig(), SIZE, generator(5)).double()
    keys = torch.arange(4)
    before = gate(codes(4), keys=keys, step=1).weights
    assert gate.seed != again.seed
    again.load_state_dict(gate.state_dict())
    assert torch.equal(again(codes(4), keys=keys, step=1).weights, before)


def test_the_noise_has_the_deviation_that_the_code_asks_for():
    gate = made(training=True, experts=2, chosen=1)
    code = codes(1).expand(4000, -1)
    with torch.no_grad():
        logits = gate(code, keys=torch.arange(4000)).probabilities.log()
    difference = logits[:, 0] - logits[:, 1]
    deviation = nn.functional.softplus(code[0] @ gate.spread.detach().T).square().sum().sqrt()
    assert difference.std() == pytest.approx(float(deviation), rel=0.05)
    clean = code[0] @ (gate.choice[0] - gate.choice[1]).detach()
    assert difference.mean() == pytest.approx(float(clean), abs=4 * float(deviation) / 63)


def test_training_with_noise_needs_keys_and_without_does_not():
    with pytest.raises(ValueError, match="keys of the proteins"):
        made(training=True)(codes(2))
    quiet = made(training=True, noise=False)
    assert quiet.spread is None
    assert torch.equal(quiet(codes(2)).weights, quiet.eval()(codes(2)).weights)


def test_noise_is_normal_and_independent_of_key_step_and_expert():
    drawn = gate_noise(torch.tensor(7), 0, torch.arange(20_000), 4)
    assert drawn.mean().abs() < 0.02
    assert drawn.std() == pytest.approx(1, abs=0.01)
    assert (drawn**4).mean() == pytest.approx(3, abs=0.15)
    assert (drawn.abs() < 0.6745).double().mean() == pytest.approx(0.5, abs=0.01)
    neighbours = torch.cat((drawn[:-1], drawn[1:]), dim=1)
    later = gate_noise(torch.tensor(7), 1, torch.arange(19_999), 4)
    other = gate_noise(torch.tensor(8), 0, torch.arange(19_999), 4)
    related = torch.cat((neighbours, later, other), dim=1).T.corrcoef()
    assert (related - torch.eye(16)).abs().max() < 0.03


def test_noise_equals_the_hash_in_whole_numbers():
    def hashed(state: int, word: int) -> int:
        state = (state + word + 1) * 0x9E3779B97F4A7C15 % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    seed, step, key = 2**61 + 12345, 77, 1389
    state = hashed(hashed(hashed(seed, 0), step), key)
    drawn = gate_noise(torch.tensor(seed), step, torch.tensor([key]), 3)[0]
    for expert in range(3):
        u, v = (((hashed(state, 2 * expert + word)) >> 11) / 2**53 for word in (0, 1))
        expected = math.sqrt(-2 * math.log1p(-u)) * math.cos(2 * math.pi * v)
        assert float(drawn[expert]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", ["full", "paper"])
def test_balance_is_one_where_use_is_uniform(form):
    logits = 3 * torch.eye(4, dtype=torch.float64)
    found = gating(logits, 2)
    share, probability = expert_load(found, form)
    torch.testing.assert_close(share, torch.full((4,), 0.25, dtype=torch.float64))
    assert float(probability.detach().sum()) == pytest.approx(1)
    uniform = gating(torch.zeros(4, 4, dtype=torch.float64), 4)
    assert balance_loss(uniform, form).item() == pytest.approx(1)
    rolled = gating(torch.stack([torch.arange(4.0).roll(k) for k in range(4)]).double(), 4)
    assert balance_loss(rolled, form).item() == pytest.approx(1)


def test_balance_is_the_number_of_experts_where_one_does_all():
    found = gating(torch.tensor([[99.0, 0, 0, 0]]).expand(5, -1).double(), 2)
    assert balance_loss(found).item() == pytest.approx(4)


@pytest.mark.parametrize("form", ["full", "paper"])
def test_only_the_full_form_reaches_an_expert_that_nobody_chose(form):
    gate = made(experts=4, chosen=2)
    with torch.no_grad():
        gate.choice[3] = 0
        gate.choice[3, 0] = -50
    code = codes(16).abs()
    found = gate(code)
    assert not (found.chosen == 3).any()
    balance_loss(found, form).backward()
    assert bool(gate.choice.grad[3].any()) == (form == "full")
    if form == "full":
        assert gate.choice.grad[3, 0] < 0


def test_an_expert_that_does_too_much_is_chosen_less():
    gate = made(experts=4, chosen=2)
    with torch.no_grad():
        gate.choice[1] += 1
    code = codes(64).abs()
    before = balance_loss(gate(code))
    optimiser = torch.optim.SGD(gate.parameters(), lr=1)
    for _ in range(40):
        optimiser.zero_grad()
        balance_loss(gate(code)).backward()
        optimiser.step()
    assert balance_loss(gate(code)) < before - 1
    assert float(expert_load(gate(code))[0][1]) < 0.6


def test_shares_are_averaged_over_steps_in_training_only():
    gate = made(training=True, memory=0.75, noise=False)
    found = gating(torch.tensor([[9.0, 0, 0, 0]]).double(), 2)
    first = gate.balance(found).item()
    share = torch.tensor([0.75 * 0.25 + 0.25, 0.1875, 0.1875, 0.1875], dtype=torch.float64)
    torch.testing.assert_close(gate.share, share)
    assert first == pytest.approx((4 * (share * found.probabilities[0]).sum()).item())
    gate.eval()
    assert gate.balance(found) == balance_loss(found)
    torch.testing.assert_close(gate.share, share)


def test_without_memory_the_batch_alone_counts():
    gate = made(training=True, memory=0.0, balance="paper", noise=False)
    found = gate(codes(5))
    torch.testing.assert_close(gate.balance(found), balance_loss(found, "paper"))


def test_a_step_does_not_change_what_the_backward_pass_of_another_needs():
    gate = made(training=True, noise=False)
    losses = [gate.balance(gate(codes(5, seed))) for seed in (1, 2)]
    sum(losses).backward()
    assert gate.choice.grad.isfinite().all()


def test_bfloat16_does_not_touch_the_choice():
    gate = Gate(GateConfig(), SIZE, generator()).eval()
    code = codes(20).float()
    exact = gate(code)
    with torch.autocast("cpu", torch.bfloat16):
        same = gate(code)
    assert torch.equal(same.weights, exact.weights)


class Affine(nn.Module):
    """An expert that counts how often and with how many rows it is called."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, generator=generator(seed)).double())
        self.calls: list[int] = []

    def forward(self, points: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(points))
        return torch.tanh(points @ self.weight) + shift[:, None]


def rows(count: int, proteins: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = generator(8)
    return (
        torch.randn(count, 3, generator=draw, dtype=torch.float64),
        torch.randn(count, generator=draw, dtype=torch.float64),
        torch.randint(proteins, (count,), generator=draw),
    )


def test_the_mixture_equals_the_weighted_sum_over_all_experts():
    gate, experts = made(experts=6, chosen=3), [Affine(seed) for seed in range(6)]
    points, shift, owner = rows(50, 4)
    found = gate(codes(4))
    (value,) = mixture(experts, Dispatch(found, owner), points, shift)
    dense = sum(
        found.weights[owner, k, None] * expert(points, shift) for k, expert in enumerate(experts)
    )
    torch.testing.assert_close(value, dense)
    parameters = [gate.choice, *(expert.weight for expert in experts)]
    ours, theirs = (
        torch.autograd.grad(
            one.square().sum(), parameters, retain_graph=True, materialize_grads=True
        )
        for one in (value, dense)
    )
    torch.testing.assert_close(ours, theirs)


def test_an_expert_is_called_once_with_all_its_rows_and_never_if_nobody_chose_it():
    logits = torch.tensor([[5.0, 4, 0, 0, 0], [0, 5, 4, 0, 0], [0, 4, 5, 0, 0]]).double()
    experts = nn.ModuleList(Affine(seed) for seed in range(5))
    points, shift, owner = rows(60, 3)
    dispatch = Dispatch(gating(logits, 2), owner)
    assert dispatch.active == (0, 1, 2)
    mixture(experts, dispatch, points, shift)[0].sum().backward()
    sizes = torch.bincount(owner).tolist()
    assert [one.calls for one in experts] == [[sizes[0]], [60], [sizes[1] + sizes[2]], [], []]
    assert [one.weight.grad is None for one in experts] == [False, False, False, True, True]


def test_rows_ascend_and_weigh_what_the_gate_says():
    found = made(experts=6, chosen=3)(codes(4))
    _, _, owner = rows(50, 4)
    dispatch = Dispatch(found, owner)
    total = torch.zeros(50).double()
    for expert in range(6):
        mine, weight = dispatch.rows(expert)
        assert (mine.diff() > 0).all()
        assert torch.equal(mine, (found.weights[owner, expert] > 0).nonzero()[:, 0])
        torch.testing.assert_close(weight, found.weights[owner[mine], expert])
        total.index_add_(0, mine, weight)
    torch.testing.assert_close(total, torch.ones(50).double())


def test_two_threads_give_the_gate_the_same_gradient_each_time():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    gate, found = made().float(), set()
    points = torch.randn(100_000, generator=generator())
    owner = torch.arange(4).repeat(25_000)
    for _ in range(5):
        gate.zero_grad()
        dispatch = Dispatch(gate(codes(4).float()), owner)
        mixture([torch.sin, torch.cos, torch.exp, torch.tanh], dispatch, points)[0].sum().backward()
        found.add(gate.choice.grad.numpy().tobytes())
    torch.set_num_threads(before)
    assert len(found) == 1


def test_values_and_gradients_are_mixed_alike():
    def expert(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return points.square().sum(dim=1), 2 * points

    points, _, owner = rows(30, 4)
    value, gradient = mixture([expert] * 4, Dispatch(made()(codes(4)), owner), points)
    torch.testing.assert_close(value, points.square().sum(dim=1))
    torch.testing.assert_close(gradient, 2 * points)


def test_no_rows_give_no_values_and_no_proteins_are_an_error():
    experts = [Affine(seed) for seed in range(4)]
    points, shift, owner = rows(0, 4)
    (value,) = mixture(experts, Dispatch(made()(codes(4)), owner), points, shift)
    assert value.shape == (0, 2)
    with pytest.raises(ValueError, match="at least one protein"):
        mixture(experts, Dispatch(made()(codes(0)), owner), points, shift)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chosen": 5}, r"chosen of a gate must be 1 to experts \(4\), not 5"),
        ({"chosen": 0}, "chosen of a gate"),
        ({"memory": 1.0}, "memory of a gate"),
    ],
)
def test_refuses_what_cannot_be_built(options, words):
    with pytest.raises(UsageError, match=words):
        GateConfig(**options)


PROCESS = """
import sys
import torch
from torch import nn
from undula.nn.mixture import Dispatch, Gate, GateConfig, mixture

rank, world, meeting, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if world > 1:
    torch.distributed.init_process_group(
        "gloo", init_method="file://" + meeting, rank=rank, world_size=world
    )

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.gate = Gate(GateConfig(experts=4, chosen=1, memory=0.5), 4, draw)
        self.experts = nn.ModuleList(nn.utils.skip_init(nn.Linear, 3, 1) for _ in range(4))
        with torch.no_grad():
            self.gate.choice.copy_(torch.eye(4))
            for parameter in self.experts.parameters():
                parameter.normal_(generator=draw)

    def forward(self, code, keys, points, owner):
        gating = self.gate(code, keys=keys, step=5)
        (value,) = mixture(self.experts, Dispatch(gating, owner), points)
        # Each process's share of the mean over all 12 rows, and the loss of the whole.
        return value.square().sum() * world / 12 + self.gate.balance(gating)

draw = torch.Generator().manual_seed(1)
# Proteins that ask for experts 0, 0, 1 and 2: nobody for 3; the processes differ.
code = 9 * torch.eye(4)[[0, 0, 1, 2]] + 0.1 * torch.randn(4, 4, generator=draw)
points = torch.randn(12, 3, generator=draw)
owner = torch.arange(4).repeat_interleave(3)
keys = torch.tensor([11, 5, 7, 2])
mine = slice(0, 4) if world == 1 else (slice(0, 3) if rank == 0 else slice(3, 4))
of = (owner >= mine.start) & (owner < mine.stop)
model = plain = Model().double().train()
if world > 1:
    model = nn.parallel.DistributedDataParallel(plain, find_unused_parameters=True)
loss = model(code[mine].double(), keys[mine], points[of].double(), owner[of] - mine.start)
loss.backward()
torch.save(
    {
        "share": plain.gate.share.clone(),
        "gradients": {name: one.grad for name, one in plain.named_parameters()},
    },
    out,
)
if world > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.timeout(120)
def test_two_processes_have_the_shares_and_gradients_of_one(tmp_path: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def started(rank: int, world: int) -> subprocess.Popen:
        out = tmp_path / f"{rank}-of-{world}.pt"
        words = [str(rank), str(world), str(tmp_path / "meeting"), str(out)]
        return subprocess.Popen([sys.executable, "-c", PROCESS, *words], env=environment)

    processes = [started(0, 2), started(1, 2), started(0, 1)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    first, second, whole = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("0-of-2", "1-of-2", "0-of-1")
    )
    expected = torch.tensor([0.375, 0.25, 0.25, 0.125], dtype=torch.float64)
    torch.testing.assert_close(whole["share"], expected)
    for part in (first, second):
        torch.testing.assert_close(part["share"], whole["share"])
        for name, gradient in whole["gradients"].items():
            if name.startswith("experts.3"):
                assert gradient is None
                assert part["gradients"][name] is None
            else:
                torch.testing.assert_close(part["gradients"][name], gradient)
