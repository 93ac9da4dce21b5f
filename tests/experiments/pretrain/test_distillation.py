"""The replay buffer of training targets in the trainings with a teacher."""

import torch

from experiments.pretrain.distillation import ReplayBuffer


def test_replay_buffer_drops_the_oldest_rows():
    replay = ReplayBuffer(4)
    for k in range(3):
        replay.add(torch.full((2, 1), k), torch.full((2,), 10 * k))
    first, second = replay.sample(4)
    assert sorted(second.tolist()) == [10, 10, 20, 20]
    assert torch.equal(first.flatten() * 10, second)
