"""Incomplete tokenizers, and tokenizers of another text encoder, are rejected."""

import json

import pytest
import torch

from rnri import LatentDiffusion
from rnri.loading import check_vocabulary
from tests.flux2_qwen_pipelines import tiny_flux2, tiny_qwen_image
from tests.pipelines import TOKENS, tiny_sd3, tiny_stable_diffusion, tiny_tokenizer, tiny_z_image
from tests.rnri.models.checkpoints import assert_rejected, load, update_json, with_tokenizer


def test_vocabulary_of_special_tokens_only():
    pipe = tiny_stable_diffusion()
    pipe.tokenizer = type(pipe.tokenizer)(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    assert_rejected(lambda: LatentDiffusion(pipe), "tokenizer has 2 entries", "incomplete")


def test_vocabulary_larger_than_embeddings():
    pipe = tiny_stable_diffusion()
    pipe.tokenizer.add_tokens(["<new>"])
    assert_rejected(lambda: LatentDiffusion(pipe), "do not belong together")
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))  # as textual inversion does
    assert LatentDiffusion(pipe).predictor(["a <new>"]) is not None


def test_vocabulary_smaller_than_embeddings(checkpoint_copy):
    assert load(checkpoint_copy).predictor(["a cat"]) is not None
    pipe = with_tokenizer(tiny_tokenizer(), embeddings=150)
    assert_rejected(lambda: LatentDiffusion(pipe), "tokenizer", "74 entries", "150")


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_missing_merges_in_tokenizer_json(checkpoint_copy, share):
    file = checkpoint_copy / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    merges = content["model"]["merges"]
    content["model"]["merges"] = merges[: int(share * len(merges))]
    file.write_text(json.dumps(content))
    assert_rejected(lambda: load(checkpoint_copy), "merges", "'lamp</w>'")


@pytest.mark.parametrize("lines", [1, 10])
def test_truncated_merges_file(checkpoint_copy, lines):
    component = checkpoint_copy / "tokenizer"
    model = json.loads((component / "tokenizer.json").read_text())["model"]
    (component / "tokenizer.json").unlink()
    (component / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (component / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    assert load(checkpoint_copy) is not None
    (component / "merges.txt").write_text("\n".join(["#version: 0.2", *merges[:lines]]) + "\n")
    assert_rejected(lambda: load(checkpoint_copy), "merges.txt")


def test_missing_maximum_length_is_that_of_text_encoder(checkpoint_copy):
    expected = load(checkpoint_copy)
    update_json(checkpoint_copy / "tokenizer" / "tokenizer_config.json", model_max_length=int(1e30))
    model = load(checkpoint_copy)
    assert model.pipeline.tokenizer.model_max_length == TOKENS
    text = [m.predictor(["a cat and a dog, a very long prompt"]).denoiser.positive.text for m in (model, expected)]
    assert torch.equal(*text)


def test_maximum_length_above_text_encoder(checkpoint_copy):
    pipe = load(checkpoint_copy).pipeline
    pipe.tokenizer.model_max_length = 2 * TOKENS
    assert_rejected(lambda: LatentDiffusion(pipe), "model_max_length=32", f"pipe.tokenizer.model_max_length = {TOKENS}")


def test_cached_maximum_length_of_pipeline_is_updated(tmp_path):
    tiny_sd3(t5=False).save_pretrained(tmp_path / "sd3")
    update_json(tmp_path / "sd3" / "tokenizer" / "tokenizer_config.json", model_max_length=int(1e30))
    assert load(tmp_path / "sd3").predictor(["a cat"]) is not None


class Vocabulary:
    """A tokenizer with a vocabulary of ``size`` tokens."""

    def __init__(self, size):
        self.size = size

    def get_vocab(self):
        return {str(k): k for k in range(self.size)}


def test_padding_rows_of_large_embeddings():
    check_vocabulary("the tokenizer", Vocabulary(151_669), 151_936)
    check_vocabulary("the tokenizer", Vocabulary(151_665), 152_064)
    with pytest.raises(ValueError, match="has 151000 entries"):
        check_vocabulary("the tokenizer", Vocabulary(151_000), 152_064)
    with pytest.raises(ValueError, match="has 49000 entries"):
        check_vocabulary("the tokenizer", Vocabulary(49_000), 49_408)


def test_rotary_positions_do_not_limit_the_length():
    pipe = tiny_z_image()
    pipe.tokenizer.model_max_length = 131_072
    assert LatentDiffusion(pipe).predictor(["a cat"]) is not None


def test_loading_keeps_the_maximum_length_of_the_pipeline(tmp_path):
    pipe = tiny_qwen_image()
    pipe.tokenizer.model_max_length = 131_072
    pipe.save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").pipeline.tokenizer_max_length == pipe.tokenizer_max_length == 1024


def test_tokenizer_in_a_processor_is_checked():
    pipe = tiny_flux2()
    pipe.tokenizer.tokenizer.add_tokens(["<new>"])
    assert_rejected(lambda: LatentDiffusion(pipe), "tokenizer has token ids", "do not belong together")


def test_chat_template_is_part_of_the_fingerprint():
    pipe = tiny_z_image()
    before = LatentDiffusion(pipe).fingerprint
    pipe.tokenizer.chat_template += " "
    assert LatentDiffusion(pipe).fingerprint != before
