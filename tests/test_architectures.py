"""Every architecture: its factors are those of plain float64 autograd, and its edit survives a
saved checkpoint bit for bit. What cannot be fitted is refused by name."""

import copy
import re

import architectures
import pytest
import torch
import torch.nn.functional as F
import transformers
from architectures import CASES
from autograd import autograd, is_map, truth
from expert_calls import fused_parameters
from torch import nn

import curvedit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*not run block by block:UserWarning"),
]

KINDS = ("A", "G", "A_w", "G_w")


def token_loss(output, labels):
    return F.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), reduction="sum")


def assert_factors(factors, expected, model, batches):
    """To 1e-5 of float64, or twice as far as plain float32 autograd where that is further off."""
    plain = None
    for name in factors:
        *sums, count = expected[name]
        assert factors[name].tokens == count, name
        for number, (kind, want) in enumerate(zip(KINDS, sums, strict=True)):
            error = distance(factors.mean(kind, name), want / count)
            if error >= 1e-5:
                plain = plain or autograd(copy.deepcopy(model), batches)
                of_name = next(its for key, its in plain.items() if name.endswith(key))
                allowed = 2 * distance(of_name[number], want)
                assert error < min(allowed, 1e-3), f"{kind} of {name} is off by {error:.1e}"


def distance(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def untied(model):
    """Names of the linear maps whose weight no other module holds."""
    owners = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter.data_ptr(), []).append(name)
    maps = [
        name
        for name, module in model.named_modules()
        if is_map(module) and owners[module.weight.data_ptr()] == [name]
    ]
    experts = {
        f"{name.rpartition('.')[0]}.{number}.{name.rpartition('.')[2]}"
        for name, parameter in fused_parameters(model).items()
        for number in range(len(parameter))
    }
    known = curvedit.models.maps_of(model)
    return [name for name in known if name in {*maps, *experts}]


def parameter_of(model, target):
    """The name of the parameter that holds a map's weight; that of fused experts is shared."""
    if target in dict(model.named_modules()):
        return f"{target}.weight"
    experts, _, key = target.rsplit(".", 2)
    return f"{experts}.{key}"


def fit(case, model, batches, targets):
    is_custom = case.inputs == "token classes"
    options = {"task": "custom", "loss": token_loss} if is_custom else {}
    return curvedit.fit(model, batches, targets=targets, labels="data", progress=False, **options)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More threads only wait for each other on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES)
def prepared(request):
    """A case, its model, its data, and the factors of every map that the loss reaches."""
    case, model = CASES[request.param], architectures.build(request.param)
    batches = architectures.batches(case.inputs)
    return case, model, batches, truth(model, batches)


def parts(case, model, expected):
    """The maps to fit, and those that may be refused since their inputs are not positions."""
    reached = [target for target in untied(model) if target in expected]
    plain = dict(model.named_modules())  # fused experts are none
    odd = [target for target in reached if target in plain and re.search(case.odd, target)]
    maps, positions = curvedit.models.maps_of(model), max(each[-1] for each in expected.values())
    rare = [  # experts that have no factors, since they saw too little
        target
        for target in reached
        if target not in plain
        and expected[target][-1] < max(maps[target].weight.shape) <= positions
    ]
    return [target for target in reached if target not in (*odd, *rare)], odd


def test_factors_are_those_of_plain_autograd(prepared):
    case, model, batches, expected = prepared
    targets, odd = parts(case, model, expected)
    in_blocks = [target for target in targets if re.search(r"\.\d+\.", target)]
    for chosen in (in_blocks, targets):  # alone they are fitted block by block
        factors = fit(case, model, batches, chosen)
        assert list(factors) == chosen
        assert_factors(factors, expected, model, batches)
    for target in odd:
        assert_right_or_refused(case, model, batches, target, expected)


def assert_right_or_refused(case, model, batches, target, expected):
    try:
        factors = fit(case, model, batches, [target])
    except ValueError as error:
        if not re.fullmatch(rf"targets: '{target}': .* leave this target out", str(error)):
            raise
    else:
        assert_factors(factors, expected, model, batches)


def test_a_map_that_the_loss_does_not_reach_is_named(prepared):
    """Never called, such as a decoder's under an encoder's head, or called in vain."""
    case, model, batches, expected = prepared
    idle = [target for target in untied(model) if target not in expected]
    for target in idle[:1]:
        with pytest.raises((ValueError, RuntimeError), match=f"targets: .*'{target}'"):
            fit(case, model, batches, [target])


def test_a_saved_checkpoint_is_edited_as_the_model_is(prepared, tmp_path):
    case, model, batches, expected = prepared
    targets, _ = parts(case, model, expected)
    factors = fit(case, model, batches, targets)
    selection = curvedit.rank(factors, keep_mass=0.6, progress=False)
    model.save_pretrained(tmp_path / "model")
    curvedit.project(tmp_path / "model", selection, out=tmp_path / "edited")
    reloaded = type(model).from_pretrained(tmp_path / "edited").state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert reloaded.keys() == before.keys()
    edited = {parameter_of(model, target) for target in targets}
    with curvedit.project(model, selection):
        for key, value in model.state_dict().items():
            assert torch.equal(value, reloaded[key]), key
            assert torch.equal(value, before[key]) == (key not in edited), key
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", architectures.MIXTURES)
def test_the_share_of_a_mixture_that_was_fitted_is_stated(name):
    """Experts that no pattern matches count among all parameters, not among the fitted."""
    case, model = CASES[name], architectures.build(name)
    factors = fit(case, model, architectures.batches(case.inputs), ["*.self_attn.o_proj"])
    fitted = sum(model.get_parameter(f"{target}.weight").numel() for target in factors)
    total = sum(parameter.numel() for parameter in model.parameters())
    coverage = factors.provenance["coverage"]
    assert coverage["parameters"] == pytest.approx(fitted / total, abs=1e-4)
    table = coverage["table"]
    assert sum(row["parameters"] for row in table) == total
    assert sum(row["parameters"] for row in table if row["fitted"]) == fitted
    assert all(row["why"] for row in table if not row["fitted"])
    experts = [row for row in table if re.search("expert|moe", row["name"])]
    assert experts
    assert not any(row["fitted"] for row in experts)
    assert fitted / total < 0.5


class Wrapper(nn.Module):
    """As PEFT wraps a model: a forward that names none of the model's arguments."""

    def __init__(self, base):
        super().__init__()
        self.base_model, self.config = base, base.config

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


class Adapter(nn.Module):
    """As PEFT wraps a linear map: the map itself beside two of low rank."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 4, bias=False)
        self.lora_B = nn.Linear(4, base.out_features, bias=False)

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x, *args, **kwargs) + self.lora_B(self.lora_A(x))


def adapted(model):
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, Adapter(getattr(layer.self_attn, name)))
    return model


WRAPPED = {
    "forwarding": (lambda model: Wrapper(model), "base_model."),
    "adapters": (lambda model: Wrapper(adapted(model)), "base_model."),
    "data parallel": (lambda model: nn.DataParallel(model), "module."),
    "compiled": (lambda model: torch.compile(model, backend="eager"), "_orig_mod."),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("wrapping", "name"),
    [
        ("forwarding", "llama"),
        ("forwarding", "gpt2"),
        ("forwarding", "granitemoe"),
        ("adapters", "llama"),
        ("adapters", "qwen3"),
        ("data parallel", "llama"),
        ("compiled", "llama"),  # one block, because compiling takes seconds
    ],
)
def test_wrapped_models(wrapping, name):
    case, model = CASES[name], architectures.build(name)
    if wrapping == "compiled":
        del model.model.layers[1]
    batches = architectures.batches(case.inputs)
    wrap, prefix = WRAPPED[wrapping]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = wrap(model).eval()
    expected = {
        prefix + key.removesuffix(".base_layer"): value
        for key, value in truth(model, batches).items()
        if ".lora_" not in key
    }
    names = (prefix + key.removesuffix(".base_layer") for key in untied(model))
    targets = [name for name in names if name in expected]
    assert targets
    factors = fit(case, wrapped, batches, targets)
    assert list(factors) == targets
    assert_factors(factors, expected, model, batches)


def test_an_encoder_decoder_is_refused():
    config = transformers.T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    with pytest.raises(ValueError, match=r"expected a causal .* got the encoder-decoder T5"):
        curvedit.fit(model, architectures.batches("text"), targets="*", progress=False)
