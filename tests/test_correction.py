"""EK-FAC: corrected eigenvalues against stored float64 gradients, and selections by them."""

import copy
import dataclasses

import models
import numpy as np
import pytest
import torch
from test_fitting import SEED, summed_loss

import curvedit
from curvedit import Factors
from curvedit.factors import Key
from curvedit.models import find_targets

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


def corrected(model, batches, patterns, per, **options):
    return curvedit.fit(
        model, batches, targets=patterns, corrected=per, seed=SEED, progress=False, **options
    )


def truth(model, factors, batches, labels, per):
    """Squared rotated gradients from ordinary float64 backward passes, one sequence at a time."""
    model = copy.deepcopy(model).double()
    maps, seen = find_targets(model, list(factors)), {}

    def remember(name):
        def hook(_, args, output):
            output.retain_grad()
            seen[name] = (args[0].detach(), output)

        return hook

    for name, module in maps.items():
        module.register_forward_hook(remember(name))
    totals = dict.fromkeys(maps, 0.0)
    first = 0
    for batch in batches:
        for row in range(len(batch["labels"])):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            inputs = {
                k: v.double() if v.is_floating_point() else v
                for k, v in one.items()
                if k != "labels"
            }
            loss, counts = summed_loss(model(**inputs).logits, one, labels, first + row)
            loss.backward()
            for name, (a, y) in seen.items():
                a, g = a.flatten(0, -2), y.grad.flatten(0, -2)
                u_out, u_in = (factors.basis(kind, name).vectors.double() for kind in ("G", "A"))
                if per == "position":
                    rows = slice(None) if counts is None else counts.flatten()
                    totals[name] += (g[rows] @ u_out).square().T @ (a[rows] @ u_in).square()
                else:
                    totals[name] += (u_out.T @ (g.T @ a) @ u_in).square()
        first += len(batch["labels"])
    return {name: total / factors[name].tokens for name, total in totals.items()}


@pytest.mark.parametrize("per", ["sequence", "position"])
@pytest.mark.parametrize(
    ("kind", "labels"), [("llama", "sampled"), ("llama", "data"), ("gpt2", "data"), ("vit", "data")]
)
def test_equals_stored_gradients(kind, labels, per):
    model, batches = models.build(kind), models.ragged_batches(kind)
    factors = corrected(model, batches, models.targets(kind), per, labels=labels)
    for name, expected in truth(model, factors, batches, labels, per).items():
        error = float((factors[name].S - expected).norm() / expected.norm())
        assert error < 1e-4, name


def test_batch_size_changes_nothing():
    model = models.build("llama")
    one = {"input_ids": torch.randint(3, 97, (6, 11), generator=torch.Generator().manual_seed(5))}
    apart = [{"input_ids": one["input_ids"][k : k + 1]} for k in range(6)]
    together, alone = (corrected(model, data, "*.mlp.*", "sequence") for data in ([one], apart))
    for name in together:  # degenerate eigenvectors may rotate: compare an invariant
        torch.testing.assert_close(together[name].S.sum(), alone[name].S.sum(), rtol=1e-4, atol=0)


def test_sums_are_those_of_the_gradients():
    model, batches = models.build("llama"), models.ragged_batches("llama")
    factors = corrected(model, batches, "*.mlp.*", "position")
    for name in factors:  # the trace of A_w is E[|g|^2 |a|^2]
        torch.testing.assert_close(
            factors[name].S.sum(), factors[name].A_w.trace(), rtol=1e-4, atol=0
        )


def test_a_head_in_parts_is_refused_and_whole_rows_are_not():
    model, batches = models.build("llama"), models.ragged_batches("llama")
    whole = corrected(model, batches, "lm_head", "sequence")
    rows = corrected(model, batches, "lm_head", "sequence", logits_bytes=12 * 97 * 25)
    torch.testing.assert_close(
        rows["lm_head"].S,
        whole["lm_head"].S,
        rtol=1e-3,
        atol=1e-3 * float(whole["lm_head"].S.max()),
    )
    with pytest.raises(
        ValueError, match=r"logits_bytes: expected room for .*got sequences of 'lm_head'"
    ):
        corrected(model, batches, "lm_head", "sequence", logits_bytes=12 * 97 * 3)
    corrected(model, batches, "lm_head", "position", logits_bytes=12 * 97 * 3)


def test_data_must_be_the_same_twice():
    model, batches = models.build("llama"), models.ragged_batches("llama")
    with pytest.raises(ValueError, match="batches: expected a re-iterable, such as a list"):
        corrected(model, iter(batches), "*.mlp.*", "sequence")

    class Shrinking(list):
        gone = []  # noqa: RUF012

        def __iter__(self):
            yield from self[len(self.gone) :]
            self.gone.append(1)

    with pytest.raises(ValueError, match="batches: expected the same data in the second pass"):
        corrected(model, Shrinking(batches), "*.mlp.*", "sequence")
    with pytest.raises(ValueError, match=r"corrected: expected one of \['sequence', 'position'\]"):
        corrected(model, batches, "*.mlp.*", "token")


@pytest.fixture(scope="module")
def fitted():
    model = models.build("llama")
    return model, corrected(model, models.ragged_batches("llama"), "*.mlp.*", "sequence")


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_rank_keeps_the_largest(fitted, share):
    _, factors = fitted
    for name, target in curvedit.rank(factors, keep_mass=share, criterion="ekfac").items():
        scores = factors[name].S.double().flatten()
        ordered = scores.sort(descending=True).values
        kept = (
            len(scores)
            if share == 1
            else int((ordered.cumsum(0) < share * ordered.sum()).sum()) + 1
        )
        assert target.kept == kept
        assert target.dense_mask().sum() == kept
        assert scores[target.dense_mask().flatten()].sum() == pytest.approx(
            float(ordered[:kept].sum())
        )
        assert target.mass == pytest.approx(float(ordered[:kept].sum() / ordered.sum()), rel=1e-6)
        assert target.threshold == pytest.approx(float(ordered[kept - 1]))


def test_one_threshold_for_the_model(fitted):
    _, factors = fitted
    selection = curvedit.rank(factors, keep_mass=0.6, criterion="ekfac", scope="model")
    scores = np.sort(
        np.concatenate([factors[name].S.flatten().numpy() for name in factors]).astype(np.float64)
    )[::-1]
    kept = int((scores.cumsum() < 0.6 * scores.sum()).sum()) + 1
    assert sum(target.kept for target in selection.values()) == kept
    assert len({target.mass for target in selection.values()}) > 1


def test_it_keeps_more_of_the_true_curvature_than_the_factors_do(fitted):
    _, factors = fitted
    plain = curvedit.rank(factors, keep_mass=0.5)
    ours = curvedit.rank(factors, keep_mass=0.5, criterion="ekfac")
    for name in factors:
        scores = factors[name].S.flatten().sort(descending=True).values
        most = float(scores[: plain[name].kept].sum())
        assert float(factors[name].S[plain[name].dense_mask()].sum()) <= most * (1 + 1e-5)
        assert ours[name].kept <= plain[name].kept or ours[name].mass >= 0.5


def test_edits_by_a_mask(fitted):
    model, factors = fitted
    selection = curvedit.rank(factors, keep_mass=0.5, criterion="ekfac")
    name = next(iter(selection))
    weight = model.get_submodule(name).weight
    u_out, u_in = (basis.vectors.double() for basis in selection.bases(name, weight))
    mask = selection[name].dense_mask()
    expected = u_out @ ((u_out.T @ weight.detach().double() @ u_in) * mask) @ u_in.T
    with curvedit.project(model, selection):
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_saved_with_its_bases(fitted, tmp_path):
    _, fresh = fitted
    factors = copy_of(fresh)
    factors.save(tmp_path / "factors")
    loaded = Factors.load(tmp_path / "factors")
    for name in loaded:
        assert torch.equal(loaded.corrections(name), fresh[name].S)
    selection = curvedit.rank(loaded, keep_mass=0.5, criterion="ekfac")
    curvedit.save_selection(selection, tmp_path / "selection", loaded)
    again = curvedit.load_selection(tmp_path / "selection")
    for name, target in selection.items():
        assert torch.equal(again[name].mask, target.mask)
    with pytest.raises(ValueError, match="factors: expected unsaved factors"):
        loaded.add_corrections({})
    with pytest.raises(ValueError, match="merge: expected parts without corrected eigenvalues"):
        Factors.merge([loaded, loaded])
    name = next(iter(loaded))
    basis = loaded.basis("G", name)
    (tmp_path / "factors" / f"G.{name}.basis.safetensors").unlink()
    turned = dataclasses.replace(basis, vectors=-basis.vectors)
    loaded._bases.keep(Key("G", name), turned)  # as if decomposed again, with other signs
    with pytest.raises(
        ValueError, match=r"the bases of .* differ from those its corrections were fitted in"
    ):
        loaded.corrections(name)


def copy_of(factors):
    sums = {key: factors.sum(key) for key in factors.keys_of_sums()}
    same = Factors(factors.targets, sums, factors.provenance)
    same._bases = copy.copy(factors._bases)
    return same


def test_says_what_is_missing():
    model, batches = models.build("llama"), models.ragged_batches("llama")
    factors = curvedit.fit(model, batches, targets="*.mlp.*", progress=False)
    with pytest.raises(KeyError, match="was not fitted; fit again with corrected='sequence'"):
        curvedit.rank(factors, keep_mass=0.5, criterion="ekfac")
