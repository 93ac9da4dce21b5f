"""How often a corpus mentions each concept, and the buckets that follow. Workers import it without PyTorch."""

from experiments.counting.frequency import assign_buckets, mentions, normalize
from experiments.counting.matcher import BatchCounter, count_mentions, patterns
from experiments.counting.shards import count_shard, list_shards
from experiments.naming import canonical, distinct_names

__all__ = [
    "BatchCounter",
    "assign_buckets",
    "canonical",
    "count_mentions",
    "count_shard",
    "distinct_names",
    "list_shards",
    "mentions",
    "normalize",
    "patterns",
]
