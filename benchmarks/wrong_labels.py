"""Edits of a small image classifier that was trained on some wrong labels, which it is to forget.

``python benchmarks/wrong_labels.py JSON``, with scikit-learn for its 1,797 digits.

A vision transformer learns 1,297 of them, 100 with wrong labels, until it has nearly all by heart.
Half of the wrong ones are named. Criteria and controls are brought to a third of those lost, and
`forget` runs within two budgets, at several dampings: the last is so large that the step is the
plain gradient. Accuracy and divergence are those on 250 images that were neither
trained on nor looked at by any edit.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from sklearn.datasets import load_digits

import curvedit
from curvedit.evaluation import paired_difference, ratio
from curvedit.forgetting import DAMPING
from curvedit.models import match_names
from curvedit.report import Units
from curvedit.study.arms import CONTROLS, CRITERIA, Arm, Editor, change_of
from curvedit.study.matching import match

SEEDS = (0, 1, 2)
WRONG, CHECKED, EPOCHS = 100, 250, 200
LOST = 1 / 3
BUDGETS = (0.02, 0.2)  # nats per image; the first is the usual one
DAMPINGS = {  # in units of the mean curvature
    "damping 0.01": 0.01,
    "damping 0.1": 0.1,
    "damping 1": 1.0,
    "plain gradient": 1e6,
}
PLACES = {"upper": "*.layers.{2..3}.*", "all": "*.layers.*"}


class Digits:
    """Images and labels of one seed: trained on, with wrong labels, and held out in two parts."""

    def __init__(self, seed):
        draw = np.random.default_rng(seed)
        content = load_digits()
        order = draw.permutation(len(content.target))
        images = torch.tensor(content.images[order] / 8 - 1, dtype=torch.float32)[:, None]
        true = torch.tensor(content.target[order])
        count = len(true) - 2 * CHECKED
        self.given = true[:count].clone()
        self.wrong = torch.tensor(draw.choice(count, WRONG, replace=False))
        self.given[self.wrong] += torch.tensor(draw.integers(1, 10, WRONG))
        self.given %= 10
        self.images, self.true = images[:count], true[:count]
        self.checked = images[count : count + CHECKED], true[count : count + CHECKED]
        self.test = images[count + CHECKED :], true[count + CHECKED :]


def trained(digits, seed):
    """A vision transformer of four layers that has the given labels by heart."""
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.ViTForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    steps = EPOCHS * (len(digits.given) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(digits.given), (64,))
        logits = model(pixel_values=digits.images[batch]).logits
        loss = torch.nn.functional.cross_entropy(logits, digits.given[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def hits(model, images, labels):
    """1 for each image that is given its label, else 0."""
    return (model(pixel_values=images).logits.argmax(-1) == labels).double().numpy()


def metric(values, others=None):
    """A share with its 95 % interval, or a paired difference of two."""
    ones = np.ones(len(values))
    if others is None:
        found = ratio(values, ones, resamples=1000, seed=0)
    else:
        found = paired_difference(Units(others, ones), Units(values, ones), resamples=1000, seed=0)
    return {"value": found.value, "low": found.low, "high": found.high}


def measured(model, digits, sides):
    """Wrong labels still given and true ones given, by side; and hits on the test images."""
    found = {}
    for side, chosen in sides.items():
        found[f"wrong: {side}"] = metric(hits(model, digits.images[chosen], digits.given[chosen]))
        found[f"true: {side}"] = metric(hits(model, digits.images[chosen], digits.true[chosen]))
    return found, hits(model, *digits.test)


@torch.no_grad()
def predicted(model, digits):
    """Log probabilities of the test images, float64."""
    return model(pixel_values=digits.test[0]).logits.double().log_softmax(-1)


def batches(images, labels):
    pairs = zip(images.split(64), labels.split(64), strict=True)
    return [{"pixel_values": image, "labels": label} for image, label in pairs]


def studied(seed):
    """Every edit of one model."""
    digits = Digits(seed)
    model = trained(digits, seed)
    sides = {"named": digits.wrong[::2], "not named": digits.wrong[1::2]}
    named = batches(digits.images[sides["named"]], digits.given[sides["named"]])
    factors = curvedit.fit(
        model,
        batches(digits.images, digits.given),
        targets=PLACES["all"],
        weighted=True,
        progress=False,
    )
    names = {place: match_names(each, list(factors)) for place, each in PLACES.items()}
    before, right = measured(model, digits, sides)
    logs = predicted(model, digits)
    fit_hits = hits(model, digits.images, digits.given)
    rows = [{"edit": "unedited", **before, "accuracy": metric(right), "fitted": fit_hits.mean()}]
    editor = Editor(
        model,
        {0: factors},
        names,
        named,
        DAMPING,
        batches(*digits.checked),
        seed,
        64,
        shows_progress=False,
    )

    def still(strength, arm):
        with editor.edit(arm, strength):
            chosen = sides["named"]
            return float(hits(model, digits.images[chosen], digits.given[chosen]).mean())

    def add(name, place, edit):
        after, now = measured(model, digits, sides)
        rows.append(
            {
                "edit": name,
                "place": place,
                **after,
                "accuracy": metric(now),
                "change": metric(now, right),
                "kl": metric((logs.exp() * (logs - predicted(model, digits))).sum(-1).numpy()),
                "weights": change_of(edit, model),
            }
        )

    wanted = (1 - LOST) * before["wrong: named"]["value"]
    for place in PLACES:
        for kind in (*CRITERIA, *CONTROLS):
            arm = Arm(kind, place, None)
            found = match(lambda strength, arm=arm: still(strength, arm), wanted)
            with editor.edit(arm, found.strength) as edit:
                add(kind, place, edit)
        for budget in BUDGETS:
            for name, damping in DAMPINGS.items():
                with curvedit.forget(
                    model,
                    factors,
                    named,
                    holdout=batches(*digits.checked),
                    targets=list(names[place]),
                    budget=budget,
                    damping=damping,
                    progress=False,
                ) as edit:
                    add(f"targeted, {name}, {budget:g} nats", place, edit)
    return {"seed": seed, "rows": rows}


def main(out):
    warnings.filterwarnings("ignore", message="keep_mass:")  # tried on purpose
    found = [studied(seed) for seed in SEEDS]
    record = {"format": "curvedit-wrong-labels", "tool": curvedit.__version__, "studies": found}
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/wrong_labels.py JSON")
    main(Path(sys.argv[1]))
