"""Label draws: keyed random numbers, and labels that follow a distribution."""

import pytest
import torch

from curvedit.fitting import sampling


def test_draws_depend_on_their_key_alone():
    samples, positions = torch.arange(50)[:, None], torch.arange(40)[None]
    table = sampling.uniform(7, samples, positions)
    assert torch.equal(table[13:14, 5:9], sampling.uniform(7, samples[13:14], positions[:, 5:9]))
    assert not torch.equal(table, sampling.uniform(8, samples, positions))
    assert table.min() >= 0
    assert table.max() < 1
    assert table.unique().numel() == table.numel()
    assert abs(table.mean() - 0.5) < 0.02


def test_labels_follow_the_distribution():
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0])
    draws = sampling.uniform(0, torch.arange(20000), torch.zeros(20000, dtype=torch.int64))
    labels = sampling.sample_labels(logits.softmax(0).expand(20000, 4), draws)
    shares = labels.bincount(minlength=4) / 20000
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("classes", [1, 255, 256, 257, 512, 1000])
def test_labels_invert_the_cumulative_distribution(classes):
    probabilities = torch.rand(
        64, classes, generator=torch.Generator().manual_seed(classes)
    ).double()
    probabilities[:, ::3] = 0
    probabilities[:, -1] = 1
    draws = torch.linspace(0, 1 - 2**-53, 64, dtype=torch.float64)
    labels = sampling.sample_labels(probabilities, draws)
    for row, draw, label in zip(probabilities, draws, labels, strict=True):
        cumulative = row.cumsum(0)
        expected = int((cumulative <= draw * cumulative[-1] * (1 - 1e-14)).sum())
        assert int(label) == expected
        assert row[label] > 0
