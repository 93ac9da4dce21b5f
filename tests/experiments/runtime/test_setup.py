"""Setup of a run: the config that is written to its folder."""

from experiments.runtime.setup import save_config
from tests.commands import composed


def test_replacing_the_report_of_other_settings_is_announced(tmp_path, capsys):
    def save(*overrides):
        save_config(composed(f"run_dir={tmp_path}", *overrides))
        return capsys.readouterr().out

    assert save("task.steps=4") == ""
    assert save("task.steps=5") == ""  # there is no report yet
    (tmp_path / "results.json").write_text("{}")
    assert save("task.steps=5", "trainer.devices=2") == ""
    assert save("task.steps=6") == (
        f"run_dir={tmp_path}: this run replaces the report of an earlier run with other settings: task.steps (5, 6). "
        "Finished images are kept.\n"
    )
