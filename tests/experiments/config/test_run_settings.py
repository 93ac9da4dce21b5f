"""The settings on which results depend are compared key by key."""

from experiments.config.run_settings import describe_differences, differences, first_difference


def test_differences_have_dotted_keys_and_both_values():
    before = {"task": {"steps": 20, "images": [1, 2]}, "seed": 0, "old": 1}
    now = {"task": {"steps": 4, "images": [1, 2]}, "seed": 0, "new": None}
    assert differences(before, now) == [("task.steps", 20, 4), ("old", 1, None)]
    assert first_difference(before, now) == ("task.steps", 20, 4)
    assert describe_differences(before, now) == "task.steps (20, 4), old (1, None)"


def test_equal_settings_have_no_differences():
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []
    assert first_difference({}, {}) is None and describe_differences({}, {}) == ""


def test_only_the_first_differences_are_named():
    text = describe_differences({}, {f"key{k}": k for k in range(1, 8)})
    assert text.startswith("key1 (None, 1), ") and text.endswith("key5 (None, 5), and 2 more")
