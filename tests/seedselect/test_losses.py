"""SeedSelect's two losses, compared with values that are computed by hand, and the invariances of the losses."""

import pytest
import torch

from seedselect import appearance_loss, semantic_loss


def noise(*shape: int, key: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def unit(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(images.flatten(1), dim=-1)


def semantic(latents: list[torch.Tensor], target: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    return semantic_loss(latents, target, weights, decode=lambda z: 2 * z, features=unit)


def test_semantic_loss_equals_the_value_computed_by_hand():
    latents = [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -1.0]])]
    target = torch.tensor([[0.0, 5.0]])
    # cosines 0.8 and -1
    assert semantic(latents, target, (0.5, 0.25)).item() == pytest.approx(0.5 * 0.2 + 0.25 * 2)


def test_semantic_loss_is_zero_at_the_target_and_scale_invariant():
    z = noise(3, 8)
    assert semantic([z], 7 * z, (1.0,)).abs().max() < 1e-12
    assert (semantic([z], noise(3, 8, key=1), (1.0,)) > 0.1).all()
    torch.testing.assert_close(
        semantic([z], noise(3, 8, key=1), (1.0,)),
        semantic([5 * z], noise(3, 8, key=1), (1.0,)),
    )


def test_each_weight_applies_to_its_latent():
    latents, target = [noise(2, 8, key=k) for k in range(3)], noise(2, 8, key=9)
    alone = [semantic([z], target, (1.0,)) for z in latents]
    torch.testing.assert_close(semantic(latents, target, (0.1, 0.0, 2.0)), 0.1 * alone[0] + 2 * alone[2])


def test_different_numbers_of_weights_and_latents_raise_an_error():
    with pytest.raises(ValueError, match="zip"):
        semantic([noise(2, 8)], noise(2, 8), (0.5, 0.5))


def test_appearance_loss_equals_the_value_computed_by_hand():
    latent = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    target = torch.tensor([[[[1.0, 0.0], [3.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    assert appearance_loss(latent, target).tolist() == [5.0, 1.0]


def test_gradients_pass_gradcheck():
    z, target = noise(2, 2, 3, 3).requires_grad_(), noise(2, 18, key=1)
    assert torch.autograd.gradcheck(lambda z: semantic([z, z.sin()], target, (0.3, 0.7)), z)
    assert torch.autograd.gradcheck(lambda z: appearance_loss(z, noise(2, 2, 3, 3, key=2)), z)


def test_losses_of_a_batch_are_independent():
    z, features, latent = noise(4, 2, 3, 3), noise(4, 18, key=1), noise(4, 2, 3, 3, key=2)
    for k in range(4):
        row = slice(k, k + 1)
        torch.testing.assert_close(
            semantic([z], features, (1.0,))[row],
            semantic([z[row]], features[row], (1.0,)),
        )
        torch.testing.assert_close(appearance_loss(z, latent)[row], appearance_loss(z[row], latent[row]))
