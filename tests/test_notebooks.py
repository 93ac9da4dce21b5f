"""Every notebook runs from the first to the last cell with the model in the repository, and contains its outputs.

The cells are executed in this process, which has imported PyTorch, with fewer sampling steps than in the notebook.
"""

import ast
from pathlib import Path

import nbformat
import pytest
from matplotlib import pyplot as plt

from tests.commands import forked
from tests.experiments.tiny_configs import tiny_emoji_classifier

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))
TEN_STEPS = "schedule = model.schedule(10)"
START_RUN = (
    'subprocess.run([sys.executable, "train.py", f"run_dir={RUN_DIR}", *options], check=True, capture_output=True)'
)
REPLACEMENTS = {
    "01_inversion": {TEN_STEPS: "schedule = model.schedule(2)"},
    "02_seed_space": {TEN_STEPS: "schedule = model.schedule(2)", "num_points = 7": "num_points = 3"},
    "03_rare_concepts": {TEN_STEPS: "schedule = model.schedule(3)", "iterations=8": "iterations=1"},
    "04_open_a_run": {
        'RUN_DIR = Path("runs/notebook_04")': "RUN_DIR = run_dir",
        START_RUN: 'options += ["data.concepts=1", "task.steps=2", "select.iterations=1", classifier]\n'
        '    finished = forked(f"run_dir={RUN_DIR}", *options)\n'
        "    assert finished.returncode == 0, finished.stderr",
    },
}
"""Code of each notebook that the test replaces, which makes the run shorter."""


def run_cell(source: str, variables: dict[str, object]) -> None:
    """Execute a cell, and render the value of its last line as Jupyter does."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), variables)
    if last:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), variables)
        assert getattr(value, "_repr_html_", value.__repr__)() or value is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_top_to_bottom(path, tmp_path, monkeypatch):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for old, new in REPLACEMENTS[path.stem].items():
        assert sum(source.count(old) for source in cells) == 1, old
        cells = [source.replace(old, new) for source in cells]
    shown = []

    def show():
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
            shown.append(number)
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    classifier = tiny_emoji_classifier(tmp_path / "classifier")
    monkeypatch.chdir(path.parent)  # Jupyter starts there
    with plt.rc_context():
        variables = {"__name__": "__main__", "run_dir": tmp_path / "run", "classifier": classifier, "forked": forked}
        for source in cells:
            run_cell(source, variables)
    assert shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "display_data" in kinds
    assert "error" not in kinds
    assert path.stat().st_size < 600_000


def test_all_notebooks_are_collected():
    assert [path.stem for path in NOTEBOOKS] == list(REPLACEMENTS)
