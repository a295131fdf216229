"""A plain implementation of the procedure that the method's released collector follows.

It was written from the procedure's description, for comparison: one A per projection, full float32
products that are added to the sums, weight gradients that are computed and dropped, gradient
checkpointing with a backward pass down to the embeddings, all logits at once, a mean loss, and
four layers per pass over the data.
"""

import warnings

import torch
import torch.nn.functional as F

LAYERS_PER_PASS = 4
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class _Moments:
    """Sums for A and G of one projection."""

    def __init__(self, module):
        device = module.weight.device
        self.a = torch.zeros(module.in_features, module.in_features, device=device)
        self.g = torch.zeros(module.out_features, module.out_features, device=device)
        self.tokens = 0
        self.inputs = None
        self.handles = [
            module.register_forward_hook(self.forward),
            module.register_full_backward_hook(self.backward),
        ]

    def forward(self, _, args, __):
        self.inputs = args[0].detach()[:, :-1].reshape(-1, args[0].shape[-1]).float()

    def backward(self, _, __, gradients):
        g = gradients[0].detach()[:, :-1].reshape(-1, gradients[0].shape[-1]).float()
        self.a.add_(self.inputs.T @ self.inputs)
        self.g.add_(g.T @ g)
        self.tokens += len(g)


def collect(model, batches, seed=0, layers=None):
    """Mean (A, G) per projection of every layer, or of these layers' numbers."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    found = {}
    model.train()  # or there is no gradient checkpointing; the model has no dropout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    numbers = list(range(len(model.model.layers)) if layers is None else layers)
    for first in range(0, len(numbers), LAYERS_PER_PASS):
        model.requires_grad_(False)
        moments = {}
        for number in numbers[first : first + LAYERS_PER_PASS]:
            for projection in PROJECTIONS:
                module = getattr(model.model.layers[number].mlp, projection)
                module.weight.requires_grad_(True)
                moments[f"model.layers.{number}.mlp.{projection}"] = _Moments(module)
        for ids in batches:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            probabilities = logits.detach().softmax(-1).flatten(0, 1)
            labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            F.cross_entropy(logits.flatten(0, 1), labels).backward()
            model.zero_grad(set_to_none=True)
        for name, moment in moments.items():
            found[name] = (moment.a / moment.tokens, moment.g / moment.tokens)
            for handle in moment.handles:
                handle.remove()
    model.gradient_checkpointing_disable()
    model.disable_input_require_grads()
    return found
