"""A saved checkpoint, and a copy of it that a test may damage."""

from __future__ import annotations

import shutil

import pytest

from tests.rnri.models.checkpoints import bpe_tokenizer, with_tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "sd"
    with_tokenizer(bpe_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint_copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")
