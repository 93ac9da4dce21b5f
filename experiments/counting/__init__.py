"""How often a corpus mentions each concept, and the buckets that follow. Workers import it without PyTorch."""

from experiments.counting.frequency import assign_buckets, mentions, normalize
from experiments.counting.matcher import BatchCounter, count_mentions, patterns
from experiments.counting.shards import count_shard, list_shards
from experiments.naming import normalize_name, unique_names

__all__ = [
    "BatchCounter",
    "assign_buckets",
    "count_mentions",
    "count_shard",
    "list_shards",
    "mentions",
    "normalize",
    "normalize_name",
    "patterns",
    "unique_names",
]
