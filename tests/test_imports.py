"""Modules are imported only when they are needed, by the public names of packages and by the default experiment."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

LAZY_PACKAGES = ["nao", "rnri", "rnri.solvers", "seedselect"]
MAX_FILES = 126
"""Maximum number of files of this project that are imported before the first network evaluation of the default job."""
UNUSED = {
    "experiments/augmentation",
    "experiments/diversity",
    "experiments/editing",
    "experiments/evaluation/registry.py",
    "experiments/inversion",
    "experiments/planning/plan.py",
    "experiments/pretrain",
    "experiments/rare_concepts/report.py",
    "experiments/reporting",
    "rnri/api.py",
    "rnri/editing",
    "rnri/methods/edict.py",
    "rnri/models/attention",
    "rnri/solvers/newton_krylov.py",
    "seedselect/groups.py",
    "seedselect/noise.py",
    "seedselect/subset.py",
}
"""Files and folders that the default job does not need before its first network evaluation."""

REPORT_IMPORTS = """
import os, runpy, sys
from torch.nn.modules.module import register_module_forward_pre_hook

def report(network, inputs):
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    folders = ("experiments", "nao", "rnri", "seedselect", "train.py")
    relative = {os.path.relpath(file) for file in files if file}
    print(*("imported " + file for file in relative if file.split(os.sep)[0] in folders), sep="\\n")
    sys.exit()

register_module_forward_pre_hook(report)
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


def test_importing_a_package_does_not_import_torch():
    packages = ("rnri", "nao", "seedselect", "rnri.validation", "experiments", "rnri.solvers")
    check = "".join(f"import {package}; assert 'torch' not in sys.modules, {package!r}; " for package in packages)
    subprocess.run([sys.executable, "-c", f"import sys; {check}"], check=True)


@pytest.mark.parametrize("package", LAZY_PACKAGES)
def test_public_names_resolve(package):
    module = importlib.import_module(package)
    assert module.__all__
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", LAZY_PACKAGES)
def test_public_names_differ_from_the_names_of_submodules(package):
    module = importlib.import_module(package)
    submodules = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert not submodules & set(module.__all__)  # importing the submodule would replace the public name


@pytest.mark.parametrize("package", LAZY_PACKAGES)
def test_unknown_name_raises_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'no_such_name'"):
        _ = importlib.import_module(package).no_such_name


@pytest.mark.slow
def test_default_job_imports_only_what_it_needs(tmp_path):
    overrides = [f"run_dir={tmp_path}", "task.steps=2", "task.samples=1", "task.references=1", "data.concepts=1"]
    result = subprocess.run(
        [sys.executable, "-c", REPORT_IMPORTS, *overrides], capture_output=True, text=True, check=False
    )
    files = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("imported ")]
    assert "rnri/models/unet.py" in files, result.stderr
    assert not {file for file in files for unused in UNUSED if f"{file}/".startswith(f"{unused}/")}
    assert len(files) <= MAX_FILES
