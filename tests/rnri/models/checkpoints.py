"""Helpers to load, change and reject tiny checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from rnri import LatentDiffusion
from tests.pipelines import TOKENS, tiny_stable_diffusion, tiny_tokenizer

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
WORDS = ("cat", "dog", "owl", "car", "hat", "cow", "box", "bird", "fish", "tree", "moon", "star", "ship", "lamp")


def load(path: Path | str, **options: object) -> LatentDiffusion:
    return LatentDiffusion.from_pretrained(path, device="cpu", dtype="float32", local_files_only=True, **options)


def assert_rejected(function: Callable[[], object], *substrings: str) -> None:
    """Assert that ``function`` raises a ValueError whose message is one line and contains ``substrings``."""
    with pytest.raises(ValueError) as error:
        function()
    message = str(error.value)
    assert "\n" not in message
    for substring in substrings:
        assert substring in message, message


def bpe_tokenizer(merges: int | None = None) -> CLIPTokenizer:
    """Return a tokenizer with ``WORDS`` in its vocabulary and their merges; only the first ``merges`` of them."""
    vocabulary = dict(tiny_tokenizer().get_vocab())
    pairs = []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], start=2):
            right = letter + ("</w>" if i == len(word) else "")
            if (left, right) not in pairs:
                pairs.append((left, right))
                vocabulary.setdefault(left + right, len(vocabulary))
            left += right
    return CLIPTokenizer(vocab=vocabulary, merges=pairs[:merges], model_max_length=TOKENS)


def with_tokenizer(tokenizer: CLIPTokenizer, embeddings: int | None = None) -> StableDiffusionPipeline:
    pipe = tiny_stable_diffusion()
    pipe.tokenizer = tokenizer
    pipe.text_encoder.resize_token_embeddings(embeddings or len(tokenizer))
    return pipe


def update_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
