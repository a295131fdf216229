"""Batches as users have them: each is read rightly, or refused in one line with its number."""

import pytest
import torch
from torch import nn

import curvedit

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")

IDS = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(8) % 2


class Words(nn.Sequential):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


def words():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Words(nn.Embedding(11, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 11))


def classes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def fit(model, batch, **options):
    settings = {"targets": "*", "labels": "data", "progress": False, **options}
    return curvedit.fit(model, [batch], **settings)


def same(ours, theirs):
    for name in theirs:
        torch.testing.assert_close(ours[name].G, theirs[name].G)
        torch.testing.assert_close(ours[name].A, theirs[name].A)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8, torch.int8, torch.bool])
def test_labels_of_every_integer_dtype_mean_the_same(dtype):
    same(fit(classes(), (ROWS, CLASSES.to(dtype))), fit(classes(), (ROWS, CLASSES)))
    one = ROWS[1:2], CLASSES[1:2]
    same(fit(classes(), (one[0], one[1].to(dtype))), fit(classes(), one))
    if dtype != torch.bool:
        batch = {"input_ids": IDS, "labels": IDS.to(dtype)}
        same(fit(words(), batch), fit(words(), IDS))


REFUSED = {
    "ids in a list": ({"input_ids": IDS.tolist()}, "expected input_ids as a tensor, got list"),
    "ids of numpy": ({"input_ids": IDS.numpy()}, "expected input_ids as a tensor, got ndarray"),
    "labels in a list": ({"input_ids": IDS, "labels": IDS.tolist()}, "expected labels as a tensor"),
    "a mask in a list": (
        {"input_ids": IDS, "attention_mask": [[1] * 6] * 4},
        "expected attention_mask as a tensor",
    ),
    "one sequence": (IDS[0], r"expected input_ids of shape \(B, T\), got \(6,\)"),
    "float ids": (IDS.float(), r"expected input_ids of shape \(4, 6\), integers, got torch.float"),
    "float labels": ({"input_ids": IDS, "labels": IDS.float()}, "expected labels of shape"),
    "a causal mask": (
        {"input_ids": IDS, "attention_mask": torch.ones(4, 1, 6, 6)},
        r"expected an attention_mask of shape \(4, 6\)",
    ),
    "a mask for one row": (
        {"input_ids": IDS, "attention_mask": torch.ones(1, 6)},
        r"expected an attention_mask of shape \(4, 6\)",
    ),
    "one sample number": (
        {"input_ids": IDS, "sample_index": torch.tensor([3])},
        r"expected sample_index of shape \(4,\)",
    ),
    "too many sample numbers": (
        {"input_ids": IDS, "sample_index": torch.arange(9)},
        r"expected sample_index of shape \(4,\)",
    ),
    "float sample numbers": (
        {"input_ids": IDS, "sample_index": torch.arange(4.0)},
        "expected sample_index of shape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("labels", ["data", "sampled"])
def test_batches_that_do_not_fit_are_refused(case, labels):
    batch, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message) as error:
        fit(words(), batch, labels=labels)
    assert "batch 0" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", ["data", "sampled"])
@pytest.mark.parametrize("wrong", [CLASSES[:4], torch.arange(12) % 2])
def test_labels_for_another_number_of_samples_are_refused(labels, wrong):
    with pytest.raises(ValueError, match=r"expected labels of shape \(8,\)"):
        fit(classes(), (ROWS, wrong), labels=labels)


def test_float_labels_of_a_classifier_are_refused():
    with pytest.raises(ValueError, match=r"expected labels of shape \(8,\), integers"):
        fit(classes(), {"input": ROWS, "labels": CLASSES.float()})


def test_a_regression_has_no_classes_to_draw():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1))
    with pytest.raises(ValueError, match="model: expected logits of at least 2 classes"):
        fit(model, (ROWS, CLASSES), labels="sampled")


def test_the_first_position_is_for_classifiers():
    with pytest.raises(ValueError, match="positions: expected 'all' for a language model"):
        fit(words(), IDS, positions="first")


@pytest.mark.parametrize("seed", [2**64, 1.5, "0", None, True])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(ValueError, match="seed: expected an integer"):
        fit(words(), IDS, labels="sampled", seed=seed)


def test_inference_mode_is_refused():
    with torch.inference_mode():
        model = words()
        with pytest.raises(RuntimeError, match=r"fit: .* got torch.inference_mode"):
            fit(words(), IDS)
    with pytest.raises(ValueError, match=r"model: .* made in torch.inference_mode"):
        fit(model, IDS)
