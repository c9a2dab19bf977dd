from dataclasses import replace

import pytest
import torch
from tests.nn.turning import reflection, rotation

from undula.motion.decoder import LARGEST, DecoderConfig, FusionDecoder
from undula.motion.levels import ahead

WHEN = ahead(torch.tensor([1.0, 5.0], dtype=torch.float64), 16)
FORMS = [DecoderConfig(), DecoderConfig(fusion="concat")]
EVERY_FORM = pytest.mark.parametrize("config", FORMS, ids=lambda config: config.fusion)


def states(levels=3):
    generator = torch.Generator().manual_seed(2)
    shape = (2, 1, 5)
    return [
        (
            torch.randn(*shape, 8, generator=generator, dtype=torch.float64),
            torch.randn(*shape, 3, 8, generator=generator, dtype=torch.float64),
        )
        for _ in range(levels)
    ]


def decoder(config, size=0.5):
    made = FusionDecoder(config, 3, 8, torch.Generator().manual_seed(1)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return made


@EVERY_FORM
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_is_silent_before_it_has_learned(config, levels):
    found = decoder(config, 0.0)(states(levels), WHEN)
    for one in (found.positions, found.velocities, found.spread, found.parts):
        assert not one.any()


@EVERY_FORM
@pytest.mark.parametrize("matrix", [rotation(2), reflection(3)], ids=["turned", "mirrored"])
def test_turns_and_mirrors_with_the_states(config, matrix):
    net = decoder(config)
    found = net(states(), WHEN)
    again = net([(s, matrix @ v) for s, v in states()], WHEN)
    alike = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(again.positions, found.positions @ matrix.T, **alike)
    torch.testing.assert_close(again.velocities, found.velocities @ matrix.T, **alike)
    torch.testing.assert_close(again.parts, found.parts @ matrix.T, **alike)
    torch.testing.assert_close(again.spread, found.spread, **alike)


@EVERY_FORM
def test_parts_add_up_to_the_positions(config):
    found = decoder(config)(states(), WHEN)
    assert found.parts.shape[0] == (3 if config.fusion == "attention" else 1)
    torch.testing.assert_close(found.parts.sum(dim=0), found.positions, rtol=0, atol=1e-12)


def test_the_order_of_magnitude_of_the_spread_is_bounded():
    spread = decoder(DecoderConfig(), 100.0)(states(), WHEN).spread.detach()
    assert float(spread.abs().max()) == LARGEST


@EVERY_FORM
def test_the_spread_is_the_linear_forecasts_where_it_is_not_learned(config):
    found = decoder(replace(config, spread=False))(states(), WHEN)
    assert not found.spread.any()
    assert found.positions.any()


def test_levels_that_are_not_there_do_not_matter_to_a_coarser_decoding():
    net = decoder(DecoderConfig())
    with torch.no_grad():
        for weight in net.read[2].parameters():
            weight.fill_(float("nan"))
    assert torch.isfinite(net(states(2), WHEN).positions).all()
