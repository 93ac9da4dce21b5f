"""The first figure of the README: the drawing is the corpus's, and a row shows what its titles say."""

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from tools.make_readme_figure import EXAMPLE, Row, draw, make_row, read_drawing


def test_example_in_the_repository_is_the_drawing_of_the_corpus():
    with Image.open(f"docs/figures/{EXAMPLE}") as image:
        assert np.array_equal(np.asarray(image), np.asarray(read_drawing("fox")))


@pytest.mark.slow
def test_row_has_the_drawing_reconstructions_and_edits(tmp_path):
    pipe = DiffusionPipeline.from_pretrained("assets/models/emoji")
    images = make_row(pipe, Row("fox", "a fox", (("white", "pink"), ("a fox", "a deer"))), steps=2)
    titles = [title.partition("\n") for title, _ in images]
    assert [title for title, _, _ in titles] == ["drawing", "DDIM inversion", "seed", "this project", "edit:", "edit:"]
    psnr = [float(text.split(" of ")[0]) for title, _, text in titles if title in ("DDIM inversion", "this project")]
    assert psnr[1] > psnr[0]
    assert [text for _, _, text in titles[-2:]] == ["pink background", "a deer"]
    draw([images, images], tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 6 * 64
