"""The PSNR of ``rnri``, which does not import torchmetrics, is the PSNR of the experiments."""

import torch

from experiments.evaluation.background_metrics import background_scores
from experiments.evaluation.metrics import psnr
from rnri import pipeline_inversion


def test_all_definitions_of_psnr_agree():
    images, targets = torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    images[1] = targets[1]
    images[2] = targets[2] + 1e-3
    expected = pipeline_inversion.psnr(images, targets)
    assert expected[0] < 12 and expected[1] == torch.inf and 59 < expected[2] < 61
    torch.testing.assert_close(psnr(images, targets).double(), expected, rtol=1e-4, atol=0)
    nothing = torch.zeros(3, 16, 24, dtype=torch.bool)  # the background is the whole image
    torch.testing.assert_close(background_scores(images, targets, nothing).psnr, expected)
