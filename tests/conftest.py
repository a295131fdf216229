"""Versions at the head of each run; Triton's interpreter where there is no GPU."""

import os

import torch

if torch.cuda.is_available():  # must be set before the first product
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
else:  # must be set before a kernel module is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import transformers

from curvedit import _C

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def pytest_report_header() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{versions}, cpu {_C.instruction_sets('syrk_accumulate')[0]}, gpu {gpu}"


def pytest_configure(config) -> None:
    if torch.cuda.is_available():
        for message in (
            ".*does not have a deterministic implementation",  # asked for: memory is NaN at first
            ".*defaults to a non-deterministic algorithm",  # attention's backward pass
            "Attempting to run cuBLAS, but there was no current CUDA context",  # autograd's thread
        ):
            config.addinivalue_line("filterwarnings", f"ignore:{message}:UserWarning")


@pytest.fixture(autouse=True)
def _a_broken_device_ends_its_process():
    """A kernel that fails spoils its process; under xdist another one takes the other tests."""
    yield
    if torch.cuda.is_available() and "PYTEST_XDIST_WORKER" in os.environ:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(70)


KERNELS = ("syrk_accumulate", "second_moment_accumulate", "staircase_limits", "staircase_project")


@pytest.fixture(autouse=True)
def _memory_is_nan_until_written(request):
    """In the kernels' tests torch.empty gives NaN, so that no corner is left unwritten unseen."""
    if not any(
        name in request.module.__name__ for name in (*KERNELS, "refuses", "borders", "test_gpu")
    ):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
