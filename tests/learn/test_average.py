import pytest
import torch

from undula.learn.average import update_average, weights_from


def test_tends_to_the_weights_and_copies_counters():
    module = torch.nn.BatchNorm1d(2)
    average = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    module.num_batches_tracked.fill_(5)
    update_average(average, module, decay=0.9, step=0)
    torch.testing.assert_close(average["weight"], torch.full((2,), 0.9))
    assert average["num_batches_tracked"] == 5
    for _ in range(200):
        update_average(average, module, decay=0.9, step=1000)
    torch.testing.assert_close(average["weight"], torch.ones(2))


def test_a_constant_decay_is_reached_later():
    module = torch.nn.Linear(1, 1)
    average = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    update_average(average, module, decay=0.75, step=10**6)
    torch.testing.assert_close(average["weight"], 0.25 * module.weight.detach())


def test_lends_weights_and_takes_them_back_even_after_an_error():
    module = torch.nn.Linear(2, 1)
    own = module.weight.detach().clone()
    other = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    with weights_from(module, other):
        assert not module.weight.any()
    torch.testing.assert_close(module.weight.detach(), own, rtol=0, atol=0)
    with pytest.raises(ZeroDivisionError), weights_from(module, other):
        1 / 0  # noqa: B018
    torch.testing.assert_close(module.weight.detach(), own, rtol=0, atol=0)
