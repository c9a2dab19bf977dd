"""The latent code of an unseen protein, fitted to its first frame and to nothing later."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from undula.surface.clouds import router_cloud
from undula.surface.experts import PointRows
from undula.surface.first_frame import FirstFrame
from undula.surface.losses import manifold_loss, normal_loss
from undula.surface.mixture import MixtureModel

STEPS, RATE, HALVE_EVERY, POINTS = 200, 1e-2, 80, 512
_PRIOR = 1e-3


def fitted_latent(model: MixtureModel, first: FirstFrame) -> Float[Tensor, "1 latent"]:
    r"""Fit the latent code of a protein by its first surface at t = 0.

    .. math::
        \min_z E_{x \sim X_0} |f(x, 0; z)| + \lVert \nabla_x f - n \rVert
        + \lambda \lVert z \rVert

    The weights stay as they are. It starts from the mean of the training codes.

    Args:
        model: One with fitted codes (experts of kind paper).
        first: The protein's first frame: all that is read.

    Source: IGR's ``optimize_latent`` and DSR, which never meets an unseen protein. Differs from
    IGR: 200 steps instead of 800, the normals' term.
    """
    assert model.latents is not None
    generator = torch.Generator().manual_seed(0)
    surface = first.surface.cloud(1.0)
    device = model.latents.device
    points = surface.points.float().to(device)
    normals = surface.normals.float().to(device)
    scales = torch.tensor([first.scale], device=device)
    cloud = router_cloud(first.structure, model.config.cloud)
    cloud = cloud.to(dtype=torch.float32, device=device)
    code = model.latents.detach().mean(dim=0, keepdim=True).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([code], lr=RATE)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, HALVE_EVERY, 0.5)
    one = torch.zeros(1, dtype=torch.long, device=device)
    start = torch.zeros(1, device=device)
    with torch.no_grad():
        encoding = model.encode(cloud, scales, latent=code)
    with torch.enable_grad():
        for _ in range(STEPS):
            chosen = torch.randint(len(surface), (POINTS,), generator=generator)
            rows = PointRows(
                frame=torch.zeros(POINTS, dtype=torch.long, device=device),
                points=points[chosen],
                distance=torch.zeros(POINTS, device=device),
                features=torch.zeros(POINTS, 0, device=device),
            )
            encoding = replace(encoding, latent=code)
            value, gradient = model.field_and_gradient(encoding, one, start, rows)
            loss = manifold_loss(value / first.scale)
            loss = loss + normal_loss(gradient, normals[chosen])
            loss = loss + _PRIOR * code.norm()
            # Of the code alone: a training that asks keeps the gradients of its weights.
            (code.grad,) = torch.autograd.grad(loss, [code])
            optimiser.step()
            schedule.step()
    return code.detach()
