"""Dispatch: a requested backend runs or raises; a bare name warns where it does not apply."""

import warnings

import models
import pytest
import torch

import curvedit
from curvedit import _C, ops
from curvedit.ops import dispatch, tiles

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture
def asking(monkeypatch):
    """A function that sets CURVEDIT_BACKEND, as a fresh process would see it."""

    def ask(text):
        monkeypatch.setenv(ops.VARIABLE, text)
        dispatch._parsed.cache_clear()
        dispatch._say.cache_clear()

    yield ask
    dispatch._parsed.cache_clear()
    dispatch._say.cache_clear()


WITHOUT_BFLOAT16 = {"avx512", "avx2", "portable"}  # the others multiply bfloat16 only


def syrk_case(dtype=torch.float32):
    return tiles.zeros(8), torch.ones(4, 8, dtype=dtype)


def fitted(**options):
    model = models.build("llama")
    batches = models.ragged_batches("llama")
    return model, curvedit.fit(model, batches, targets="*.mlp.*", progress=False, **options)


def test_choose_returns_what_runs_and_says_what_it_is():
    out, x = syrk_case()
    implementation = ops.choose("syrk_accumulate", out, x)
    assert (implementation.op, implementation.backend) == ("syrk_accumulate", "cpp")
    assert implementation.label == f"cpp ({implementation.variant})"
    implementation(out, x)
    assert torch.equal(tiles.unpack(out, 8), x.T @ x)


def test_the_instruction_set_is_that_of_the_input():
    assert ops.choose("syrk_accumulate", *syrk_case()).variant in WITHOUT_BFLOAT16
    sets = _C.instruction_sets("syrk_accumulate")
    assert ops.choose("syrk_accumulate", *syrk_case(torch.bfloat16)).variant == sets[0]

    sets = _C.instruction_sets("second_moment_accumulate")
    for dtype, expected in ((torch.float32, WITHOUT_BFLOAT16), (torch.bfloat16, {sets[0]})):
        x = torch.ones(4, 8, dtype=dtype)
        call = (torch.zeros(8, 8), x, x, None)
        assert ops.choose("second_moment_accumulate", *call).variant in expected


def test_a_record_names_every_backend_that_ran():
    out, x = syrk_case()
    record = ops.Record()
    for backend in ("torch", "reference", "torch"):
        record.used(ops.choose("syrk_accumulate", out, x, backend=backend))
    assert record.summary() == {"syrk_accumulate": "torch, reference"}


def test_explain_gives_a_reason_for_each_backend():
    reasons = ops.explain("syrk_accumulate", *syrk_case(torch.bfloat16))
    assert list(reasons) == ops.backends("syrk_accumulate")
    assert reasons["cpp"] == reasons["torch"] == ""
    assert "needs CUDA tensors" in reasons["cuda"]
    assert "takes float32" in reasons["reference"]


@pytest.mark.parametrize("backend", ["cuda", "wgmma", "triton", "torch", "cpp", "reference"])
def test_rank_runs_whatever_bare_backend_is_asked_for(asking, backend):
    _, factors = fitted()
    expected = curvedit.rank(factors, keep_mass=0.6, progress=False)
    asking(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = curvedit.rank(factors, keep_mass=0.6, progress=False)
    for name, target in expected.items():
        assert torch.equal(found[name].limits, target.limits)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_a_default_fit_runs_with_a_bare_backend(asking, backend):
    asking(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, factors = fitted()
    assert factors.provenance["backend"]["syrk_accumulate_pair"].split()[0] == backend
    assert factors.provenance["backend"]["syrk_accumulate"].split()[0] == backend


def test_a_bare_backend_says_which_ops_do_not_have_it(asking):
    asking("wgmma")
    spectrum = torch.ones(3).double()
    with pytest.warns(
        UserWarning, match=r"no backend 'wgmma' for second_moment_accumulate, .*limits"
    ):
        assert ops.choose("staircase_limits", spectrum, spectrum, 0.5).backend == "cpp"
    with warnings.catch_warnings():  # warned once only
        warnings.simplefilter("error")
        ops.choose("staircase_limits", spectrum, spectrum, 0.5)


def test_a_bare_backend_that_this_machine_cannot_run_raises(asking):
    asking("cuda")
    with (
        pytest.warns(UserWarning, match="no backend .*; the default is used"),
        pytest.raises(RuntimeError, match="syrk_accumulate: cuda needs CUDA tensors, got cpu"),
    ):
        ops.choose("syrk_accumulate", *syrk_case(torch.bfloat16))


def test_a_bare_backend_leaves_calls_that_it_does_not_take(asking):
    asking("reference")  # takes float32 only
    assert ops.choose("syrk_accumulate", *syrk_case()).backend == "reference"
    with pytest.warns(UserWarning, match="syrk_accumulate uses its default where reference takes"):
        chosen = ops.choose("syrk_accumulate", *syrk_case(torch.bfloat16))
    assert chosen.backend == "cpp"


def test_a_backend_named_for_an_op_runs_or_raises(asking):
    asking("syrk_accumulate=torch, staircase_project=reference")
    assert ops.choose("syrk_accumulate", *syrk_case()).backend == "torch"
    pair = (tiles.zeros(8), tiles.zeros(8), torch.ones(4, 8), torch.ones(4))
    assert ops.choose("syrk_accumulate_pair", *pair).backend == "cpp"
    asking("syrk_accumulate=reference")
    with pytest.raises(RuntimeError, match="syrk_accumulate: reference takes float32 input"):
        ops.choose("syrk_accumulate", *syrk_case(torch.bfloat16))


def test_a_name_for_one_op_goes_before_a_bare_one(asking):
    asking("torch,syrk_accumulate=reference")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ops.choose("syrk_accumulate", *syrk_case()).backend == "reference"
        pair = (tiles.zeros(8), tiles.zeros(8), torch.ones(4, 8), torch.ones(4))
        assert ops.choose("syrk_accumulate_pair", *pair).backend == "torch"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("opencl", r"CURVEDIT_BACKEND: expected one of .* or OP=BACKEND, got 'opencl'"),
        ("syrk=torch", r"CURVEDIT_BACKEND: expected one of the ops .*, got 'syrk'"),
        ("staircase_limits=cuda", r"expected a backend of staircase_limits, one of .*, got 'cuda'"),
        ("torch,cpp", "expected at most one bare backend, got 'torch' and 'cpp'"),
        ("syrk_accumulate=", "expected a backend of syrk_accumulate"),
    ],
)
def test_a_variable_that_makes_no_sense_is_refused(asking, text, message):
    asking(text)
    with pytest.raises(ValueError, match=message):
        ops.choose("syrk_accumulate", *syrk_case())


@pytest.mark.parametrize("text", ["", " ", ",", " torch ,", "syrk_accumulate = torch"])
def test_blanks_mean_nothing(asking, text):
    asking(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ops.choose("syrk_accumulate", *syrk_case()).backend == (
            "torch" if "torch" in text else "cpp"
        )


def test_the_argument_goes_before_the_variable(asking):
    asking("syrk_accumulate=torch")
    assert ops.choose("syrk_accumulate", *syrk_case(), backend="cpp").backend == "cpp"
    with pytest.raises(RuntimeError, match=r"has no backend 'opencl'; it has \['cpp'"):
        ops.choose("syrk_accumulate", *syrk_case(), backend="opencl")


def test_a_fit_of_targets_that_are_never_called_says_so():
    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    data = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(ValueError, match="targets: none of the 1 was called in 1 batches"):
        curvedit.fit(Idle(), data, targets="idle", progress=False)
    with pytest.warns(UserWarning, match="1 of 2 targets were never called"):
        assert list(curvedit.fit(Idle(), data, targets="*", progress=False)) == ["used"]
