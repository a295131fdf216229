"""A batch that does not fit into a GPU's memory is run in halves, with the same result."""

import copy

import models
import pytest
import torch

import curvedit

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")
NAMES = ("A", "G", "A_w", "G_w")


def scarce(model, rows):
    """A model whose last block runs out of memory with more than so many rows."""

    def refuse(_, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if len(hidden) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    model = copy.deepcopy(model)
    model.model.layers[-1].register_forward_pre_hook(refuse, with_kwargs=True)
    return model


def fitted(model, batches, **options):
    return curvedit.fit(model, batches, targets="*mlp*", progress=False, **options)


@pytest.mark.parametrize("labels", ["sampled", "data"])
def test_halves_give_the_same_factors(labels):
    model = models.build("llama")
    ids = torch.randint(models.VOCABULARY, (21, 12), generator=torch.Generator().manual_seed(0))
    batches = [ids[:8], ids[8:19], ids[19:]]
    whole = fitted(model, batches, labels=labels)
    with pytest.warns(UserWarning, match="were run 2 samples at a time"):
        parts = fitted(scarce(model, 3), batches, labels=labels)
    assert list(parts) == list(whole)
    for name in whole:
        assert parts[name].tokens == whole[name].tokens
        for kind in NAMES:
            got, want = parts.mean(kind, name), whole.mean(kind, name)
            assert (got - want).norm() <= 1e-6 * want.norm(), (kind, name)
    counts = ("samples", "positions", "loss_terms")
    assert all(parts.provenance[each] == whole.provenance[each] for each in counts)


def test_rows_without_a_loss_term_may_be_a_half_of_their_own():
    model = models.build("llama")
    ids = torch.randint(models.VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[2:] = -100
    batch = [{"input_ids": ids, "labels": labels}]
    whole = fitted(model, batch, labels="data")
    with pytest.warns(UserWarning, match="were run 2 samples at a time"):
        parts = fitted(scarce(model, 2), batch, labels="data")
    for name in whole:
        assert parts[name].tokens == whole[name].tokens
        assert (parts[name].A - whole[name].A).norm() <= 1e-6 * whole[name].A.norm()


def test_a_single_sample_that_does_not_fit_is_the_end():
    model = scarce(models.build("llama"), 0)
    with pytest.raises(torch.OutOfMemoryError):
        fitted(model, [torch.randint(models.VOCABULARY, (4, 12))])


def test_images_of_one_tensor_for_all_are_not_divided():
    model = models.build("llama")
    ids = torch.randint(models.VOCABULARY, (4, 12))
    batch = {"input_ids": ids, "position_ids": torch.arange(12)[None]}
    with pytest.raises(torch.OutOfMemoryError):
        fitted(scarce(model, 2), [batch])


def test_what_was_summed_in_part_is_not_summed_again():
    """Memory that runs out in a lower block, when the last one's sums have been made."""
    model = copy.deepcopy(models.build("llama"))
    first = model.model.layers[0].mlp  # not called in the pass over the head

    def refuse(_, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if torch.is_grad_enabled() and len(hidden) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    first.register_forward_pre_hook(refuse, with_kwargs=True)
    ids = torch.randint(models.VOCABULARY, (4, 12))
    with pytest.raises(torch.OutOfMemoryError):
        fitted(model, [ids])
