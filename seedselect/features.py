"""Image and text features of a CLIP model, differentiable with respect to the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from rnri.loading import check_merges, check_model_type, check_vocabulary, load_network, load_tokenizer
from rnri.validation import Dtype, NonEmptyStr, first_line

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase, VisionTextDualEncoderModel

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TITLE = "a CLIP model"
UNUSED_WEIGHTS = ("position_ids", "logit_scale")  # names of weights that do not change the features and may be missing
MODEL_CLASSES = {"clip": "CLIPModel", "vision-text-dual-encoder": "VisionTextDualEncoderModel"}
"""Names of the supported classes of ``transformers``, by the ``model_type`` in config.json."""


VIEW_CROP = 0.15  # maximum fraction of the height and width that the crop of a view removes
VIEW_COLOR = 0.2  # maximum change of the brightness and of the contrast of a view, as a fraction


def view_features(features: Callable[[Tensor], Tensor], images: Tensor, *, views: int) -> Tensor:
    """Return the mean features ``[B,D]`` of several augmented views of each image ``[B,3,H,W]`` with values in [0, 1].

    The first view is the image. The other views are crops that are resized to the size of the image, with a different
    brightness and contrast. The views are random, but they are the same in every call and for every image. The mean is
    not normalized to unit length. Therefore, for a unit-length ``target``, ``1 - mean @ target`` is the mean of the
    cosine distances between the views and the target.

    Args:
        features: function that maps images to unit-length features ``[B,D]``.
        images: the images.
        views: number of views, at least 1.
    """
    generator = torch.Generator().manual_seed(0)
    total = features(images)
    for _ in range(views - 1):
        total = total + features(_view(images, torch.rand(5, generator=generator).tolist()))
    return total / views


def _view(images: Tensor, uniform: Sequence[float]) -> Tensor:
    """Return an augmented view of ``images [B,3,H,W]``.

    ``uniform`` contains five numbers in [0, 1), which determine the size of the crop, the vertical and the horizontal
    position of the crop, the brightness and the contrast.
    """
    from torchvision.transforms.v2 import functional  # imported here, because the import takes seconds

    crop, top, left, brightness, contrast = uniform
    size = list(images.shape[-2:])
    height, width = (round(side * (1 - VIEW_CROP * crop)) for side in size)
    position = [round(top * (size[0] - height)), round(left * (size[1] - width))]
    view = functional.resized_crop(images, *position, height, width, size)
    view = functional.adjust_brightness(view, 1 + VIEW_COLOR * (2 * brightness - 1))
    return functional.adjust_contrast(view, 1 + VIEW_COLOR * (2 * contrast - 1))


class ClipFeatures:
    """Computes unit-length image and text features ``[B,D]`` with a CLIP model of ``transformers``.

    The model is either a ``CLIPModel`` or a ``VisionTextDualEncoderModel``, whose image encoder may be another network,
    such as a timm model.

    Images are preprocessed by tensor operations of this class, because the image processors of ``transformers`` are not
    differentiable. The preprocessing consists of a bicubic resize of the shorter side, a center crop and a
    normalization.

    Args:
        model: the CLIP model; its weights are frozen and it is put into evaluation mode.
        tokenizer: the tokenizer of the CLIP model.
        mean, std: mean and standard deviation of the three color channels, with which images are normalized.

    Raises:
        ValueError: the config of the model does not state the size of its input images.
    """

    def __init__(
        self,
        model: CLIPModel | VisionTextDualEncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        mean: Sequence[float] = OPENAI_CLIP_MEAN,
        std: Sequence[float] = OPENAI_CLIP_STD,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        if not hasattr(model.config.vision_config, "image_size"):
            raise ValueError(
                "the config of the CLIP model has no vision_config.image_size: add the side of the input images in "
                "pixels to config.json."
            )
        self.size: int = model.config.vision_config.image_size
        self.mean = torch.tensor(mean, device=model.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=model.device).view(1, 3, 1, 1)

    @classmethod
    def from_pretrained(
        cls,
        path: NonEmptyStr | Path,
        *,
        device: str | torch.device,
        dtype: torch.dtype | Dtype,
        local_files_only: bool = False,
    ) -> ClipFeatures:
        """Load a CLIP model from a local folder or the Hub.

        Raises:
            ValueError: ``path`` has no CLIP model; a weight is missing, unknown or of a wrong shape; or the tokenizer
                is incomplete.
        """
        import transformers  # imported here, because the import takes seconds

        if local_files_only and not (Path(path) / "config.json").is_file():
            raise ValueError(
                f"{path} has no CLIP model (config.json is missing): pass a folder written by save_pretrained."
            )
        model_type = check_model_type(path, TITLE, *MODEL_CLASSES, local_files_only=local_files_only)
        tokenizer = load_tokenizer(path, local_files_only=local_files_only)
        try:
            processor = transformers.CLIPImageProcessor.from_pretrained(path, local_files_only=local_files_only)
        except Exception as error:  # damaged files raise exceptions of many types
            raise ValueError(f"cannot load {TITLE} from {path}: {first_line(error)}") from error
        mean = processor.image_mean
        std = processor.image_std
        if len(mean) != 3 or len(std) != 3 or not all(0 < value < math.inf for value in std):
            raise ValueError(
                f"cannot load {TITLE} from {path}: image_mean and image_std of the image processor must have three "
                f"values, and the values of image_std must be > 0, got {mean} and {std}; download the files again."
            )
        model = load_network(
            getattr(transformers, MODEL_CLASSES[model_type]),
            path,
            title=TITLE,
            model_type=model_type,
            harmless=UNUSED_WEIGHTS,
            dtype=dtype,
            local_files_only=local_files_only,
        )
        check_vocabulary(f"the tokenizer of {path}", tokenizer, model.config.text_config.vocab_size)
        check_merges(f"the tokenizer of {path}", tokenizer)
        return cls(model.to(device), tokenizer, mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the unit-length features ``[B,D]`` of ``images [B,3,H,W]`` with values in [0, 1]."""
        pixels = (self._resize(images.float()) - self.mean) / self.std
        output = self.model.get_image_features(pixel_values=pixels.to(self.model.dtype))
        return F.normalize(output.pooler_output.float(), dim=-1)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Return the unit-length features ``[B,D]`` of B prompts, in the same feature space as the image features."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        output = self.model.get_text_features(tokens.input_ids.to(self.model.device))
        return F.normalize(output.pooler_output.float(), dim=-1)

    def _resize(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if (height, width) == (self.size, self.size):
            return images
        short = min(height, width)
        size = [self.size * height // short, self.size * width // short]  # CLIPImageProcessor also rounds down
        images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - self.size) // 2, (size[1] - self.size) // 2
        return images[..., top : top + self.size, left : left + self.size]
