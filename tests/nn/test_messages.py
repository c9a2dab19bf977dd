from itertools import pairwise

import pytest
import torch
from tests.nn.turning import reflection, rotation, turned

from undula.errors import InputError, MachineError, UsageError
from undula.nn import messages as module
from undula.nn.irreps import EquivariantLinear, by_degree, width
from undula.nn.messages import coupling, message_graph, messages
from undula.nn.radial import RadialWeights

OWN = ("plain", "fused")
CHANNELS = {"scalars": (8,), "vectors": (16, 8), "tensors": (8, 16, 8), "degree 3": (8, 8, 8, 8)}
DEGREES = {(8,): 2}


class Case:
    """Random points, pairs, features and radial rows."""

    def __init__(self, channels, points=12, share=0.4, dtype=torch.float64) -> None:
        draw = torch.Generator().manual_seed(0)

        def numbers(*shape: int) -> torch.Tensor:
            return torch.randn(shape, dtype=dtype, generator=draw)

        self.points = 3 * numbers(points, 3)
        heard = torch.rand(points, points, generator=draw) < share
        heard.fill_diagonal_(False)
        heard[points // 2] = False
        self.pairs = heard.nonzero().T
        count = self.pairs.shape[1]
        self.paths = coupling(channels, DEGREES.get(channels, len(channels) - 1))
        self.receivers, self.senders = (numbers(points, width(channels)) for _ in range(2))
        rows = numbers(6, self.paths.weights)
        lower = torch.randint(5, (count,), generator=draw)
        self.radial = RadialWeights(rows, lower, torch.rand(count, generator=draw).to(dtype))

    @property
    def graph(self):
        return message_graph(self.points, self.pairs, self.paths.degree)

    def only(self, pairs: torch.Tensor) -> "Case":
        """Return the case of some of the pairs."""
        some = object.__new__(Case)
        some.__dict__ = dict(self.__dict__)
        some.pairs = self.pairs[:, pairs]
        some.radial = RadialWeights(
            self.radial.rows, self.radial.lower[pairs], self.radial.part[pairs]
        )
        return some

    def sums(self, form: str = "auto") -> torch.Tensor:
        return messages(
            self.receivers, self.senders, self.radial, self.graph, self.paths, form=form
        )

    def sums_and_derivatives(self, form: str) -> list[torch.Tensor]:
        inputs = [
            one.clone().requires_grad_() for one in (self.receivers, self.senders, self.radial.rows)
        ]
        radial = self.radial._replace(rows=inputs[2])
        sums = messages(*inputs[:2], radial, self.graph, self.paths, form=form)
        return [sums, *torch.autograd.grad(sums.sin().sum(), inputs)]


@pytest.fixture(params=CHANNELS.values(), ids=CHANNELS.keys())
def case(request) -> Case:
    return Case(request.param)


def test_paths_of_natural_parity_are_those_of_even_sum():
    assert [path.degrees for path in coupling((8, 8), 1).paths] == [
        (0, 0, 0),
        (1, 1, 0),
        (0, 1, 1),
        (1, 0, 1),
    ]
    assert len(coupling((8, 8, 8), 2).paths) == 11
    assert coupling((32, 16, 8), 2).weights == 3 * 32 + 4 * 16 + 4 * 8
    assert coupling((32, 16, 8), 2).message_channels == (56, 72, 64)


def test_the_numbers_of_paths_follow_each_other_without_gaps():
    paths = coupling((16, 8, 24), 2).paths
    assert [path.weights.stop for path in paths[:-1]] == [path.weight for path in paths[1:]]
    for one, other in pairwise(paths):
        same = one.degrees[2] == other.degrees[2]
        assert other.column == (one.columns.stop if same else 0)


@pytest.mark.parametrize("degrees", [path.degrees for path in coupling((8, 8, 8, 8), 3).paths])
def test_the_coupling_is_that_of_e3nn(degrees):
    o3 = pytest.importorskip("e3nn.o3")
    expected = o3.wigner_3j(*degrees, dtype=torch.float64)
    torch.testing.assert_close(module._gaunt(*degrees), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", OWN)
def test_sums_and_derivatives_equal_those_of_e3nn(case, form):
    pytest.importorskip("e3nn")
    expected = case.sums_and_derivatives("e3nn")
    for own, theirs in zip(case.sums_and_derivatives(form), expected, strict=True):
        # e3nn keeps its coefficients in float32
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)


def test_the_plain_and_the_fused_form_are_equal_to_rounding(case):
    plain, fused = (case.sums_and_derivatives(form) for form in OWN)
    torch.testing.assert_close(plain, fused, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", OWN)
def test_float32_equals_float64_to_1e_5(form):
    exact = Case((32, 16, 8)).sums(form)
    case = Case((32, 16, 8))
    for name in ("points", "receivers", "senders"):
        setattr(case, name, getattr(case, name).float())
    case.radial = RadialWeights(
        case.radial.rows.float(), case.radial.lower, case.radial.part.float()
    )
    single = case.sums(form)
    assert single.dtype == torch.float32
    assert (single - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("form", OWN)
def test_a_single_message_has_the_closed_forms_of_degree_one(form):
    case = Case((8, 8), points=2)
    case.pairs = torch.tensor([[0], [1]])
    case.radial = RadialWeights(
        case.radial.rows, torch.tensor([2]), torch.tensor([0.25], dtype=torch.float64)
    )
    scalars, vectors = by_degree(case.receivers[:1] + case.senders[1:], (8, 8))
    direction = torch.nn.functional.normalize(case.points[0] - case.points[1], dim=0)
    w = case.radial.of_pairs()[0].split(8)
    into_scalars = torch.cat((w[0] * scalars[0, 0], w[1] * (direction @ vectors[0])))
    into_vectors = torch.cat(
        (w[2] * 3**0.5 * direction[:, None] * scalars[0, 0], w[3] * vectors[0]), dim=1
    )
    found = by_degree(case.sums(form)[:1], case.paths.message_channels)
    torch.testing.assert_close(found[0][0, 0], into_scalars)
    torch.testing.assert_close(found[1][0], into_vectors)


@pytest.mark.parametrize("matrix", [rotation(), reflection()], ids=["turned", "mirrored"])
def test_messages_turn_with_points_and_features(case, matrix):
    before = case.sums()
    case.points = case.points @ matrix.T
    case.receivers, case.senders = (
        turned(one, case.paths.channels, matrix) for one in (case.receivers, case.senders)
    )
    expected = turned(before, case.paths.message_channels, matrix)
    torch.testing.assert_close(case.sums(), expected, rtol=0, atol=1e-8)


def test_does_not_change_when_the_points_are_shifted(case):
    before = case.sums()
    case.points = case.points + torch.tensor([10.0, -20, 30])
    torch.testing.assert_close(case.sums(), before, rtol=0, atol=1e-8)


@pytest.mark.parametrize("form", OWN)
def test_the_sums_over_two_halves_of_the_pairs_add_up(case, form):
    first = torch.arange(case.pairs.shape[1]) % 3 == 0
    halves = case.only(first).sums(form) + case.only(~first).sums(form)
    torch.testing.assert_close(case.sums(form), halves)


def test_the_linear_layer_after_the_sum_equals_one_for_each_pair():
    case = Case((8, 8, 8))
    layer = EquivariantLinear(
        case.paths.message_channels, (8, 8, 8), torch.Generator().manual_seed(4)
    ).double()
    torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(5))
    count = case.pairs.shape[1]
    late = layer(case.sums(), torch.bincount(case.pairs[0], minlength=12).double())
    early = torch.zeros_like(late)
    for pair in range(count):
        receiver = case.pairs[0, pair]
        early[receiver] += layer(case.only(torch.tensor([pair])).sums())[receiver]
    torch.testing.assert_close(late, early)


@pytest.mark.parametrize("form", OWN)
@pytest.mark.parametrize("channels", [(8, 8), (8, 8, 8)])
def test_passes_gradcheck(form, channels):
    case = Case(channels, points=4, share=0.7)
    inputs = [
        one.clone().requires_grad_() for one in (case.receivers, case.senders, case.radial.rows)
    ]

    def of(receivers, senders, rows):
        radial = case.radial._replace(rows=rows)
        return messages(receivers, senders, radial, case.graph, case.paths, form=form)

    assert torch.autograd.gradcheck(of, inputs, fast_mode=channels == (8, 8, 8))


@pytest.mark.parametrize("form", OWN)
def test_no_pairs_give_zeros(case, form):
    nothing = case.only(torch.zeros(case.pairs.shape[1], dtype=torch.bool))
    sums, *slopes = nothing.sums_and_derivatives(form)
    assert sums.shape == (12, width(case.paths.message_channels))
    assert not sums.any()
    assert not any(slope.any() for slope in slopes)


@pytest.mark.parametrize("form", OWN)
def test_a_point_that_hears_nobody_gets_zero(case, form):
    assert (case.pairs[0] != 6).all()
    sums = case.sums(form)
    assert not sums[6].any()
    assert sums[5].any()


def test_no_points_give_no_rows():
    case = Case((8, 8), points=1)
    case.points, case.receivers, case.senders = (
        one[:0] for one in (case.points, case.receivers, case.senders)
    )
    for form in OWN:
        assert case.sums(form).shape == (0, width(case.paths.message_channels))


def test_points_that_coincide_have_no_direction():
    case = Case((8, 8), points=2)
    case.pairs = torch.tensor([[0], [1]])
    case.radial = RadialWeights(
        case.radial.rows, torch.tensor([0]), torch.zeros(1, dtype=torch.float64)
    )
    case.points[1] = case.points[0]
    assert case.graph.harmonics.tolist() == [[1, 0, 0, 0]]
    assert torch.isfinite(case.sums()).all()


def test_harmonics_have_the_length_of_their_components():
    harmonics = Case((8, 8, 8)).graph.harmonics
    for level in range(3):
        square = harmonics[:, level**2 : (level + 1) ** 2].square().sum(dim=1)
        torch.testing.assert_close(square, torch.full_like(square, 2 * level + 1))


def test_the_size_of_a_chunk_does_not_matter(case, monkeypatch):
    whole = case.sums_and_derivatives("plain")
    for chunk in (1, 10):
        monkeypatch.setattr(module, "CHUNK_ON_CPU", chunk)
        torch.testing.assert_close(case.sums_and_derivatives("plain"), whole)


def test_the_number_of_threads_does_not_matter(case, monkeypatch):
    alone = case.sums_and_derivatives("fused")
    monkeypatch.setattr(module, "_PAIRS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    torch.testing.assert_close(case.sums_and_derivatives("fused"), alone, rtol=0, atol=1e-12)


def test_the_fused_form_gives_the_same_bytes_each_time(case):
    torch.testing.assert_close(case.sums("fused"), case.sums("fused"), rtol=0, atol=0)
    assert torch.equal(case.sums("auto"), case.sums("fused"))


@pytest.mark.parametrize("form", OWN)
def test_keeps_nothing_for_each_pair_but_where_its_weights_are(form):
    case = Case((8, 8, 8), points=30, share=0.9)
    kept: list[torch.Tensor] = []
    receivers = case.receivers.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda x: x):
        messages(receivers, case.senders, case.radial, case.graph, case.paths, form=form)
    per_pair = sum(one.numel() for one in kept if len(one) == case.pairs.shape[1])
    assert per_pair == 2 * case.pairs.shape[1]


def test_refuses_derivatives_that_do_not_exist():
    case = Case((8, 8))
    case.radial.part.requires_grad_()
    with pytest.raises(ValueError, match="no derivative by distances"):
        case.sums()


def test_refuses_rows_of_another_length():
    case = Case((8, 8))
    case.radial = case.radial._replace(rows=case.radial.rows[:, :-8])
    with pytest.raises(ValueError, match=r"should have \(32, 32, 32, 4\) numbers"):
        case.sums()


def test_refuses_places_outside_the_table():
    case = Case((8, 8))
    weights = case.radial
    for lower, words in (
        (weights.lower + 5, "should be from 0 to 4"),
        (weights.lower - 5, "should be from 0 to 4"),
        (weights.lower[1:], "need as many places"),
    ):
        case.radial = weights._replace(lower=lower)
        with pytest.raises(ValueError, match=words):
            case.sums("fused")


def test_numbers_that_are_not_finite_are_not_hidden():
    case = Case((8, 8))
    case.senders[case.pairs[1, 0]] = torch.nan
    assert torch.isnan(case.sums("fused")[case.pairs[0, 0]]).all()


@pytest.mark.parametrize("channels", [(), (0,), (8, 4), (8, 0), (-8,)])
def test_refuses_channels_that_are_not_multiples_of_eight(channels):
    with pytest.raises(UsageError, match="positive multiples of 8"):
        coupling(channels, 2)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [([[1, 0], [0, 1]], "sorted"), ([[0, 1], [1, 5]], "do not exist"), ([[-1], [0]], "exist")],
)
def test_refuses_pairs_that_would_be_misread(pairs, words):
    with pytest.raises(InputError, match=words):
        message_graph(torch.zeros(5, 3), torch.tensor(pairs), 1)


def test_refuses_forms_that_cannot_serve(monkeypatch):
    case = Case((8, 8))
    for name in ("points", "receivers", "senders"):
        setattr(case, name, getattr(case, name).half())
    case.radial = RadialWeights(case.radial.rows.half(), *case.radial[1:])
    with pytest.raises(UsageError, match=r"float32 or float64 on a CPU, not torch\.float16"):
        case.sums("fused")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(module, "import_module", missing)
    module._e3nn_product.cache_clear()
    with pytest.raises(MachineError, match="pip install"):
        Case((8, 8)).sums("e3nn")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_numbers():
    case = Case((32, 16, 8))
    expected = case.sums_and_derivatives("plain")
    case.points, case.pairs = case.points.cuda(), case.pairs.cuda()
    case.receivers, case.senders = case.receivers.cuda(), case.senders.cuda()
    case.radial = RadialWeights(*(one.cuda() for one in case.radial))
    found = [one.cpu() for one in case.sums_and_derivatives("auto")]
    torch.testing.assert_close(found, expected)
