"""GPU kernels without a GPU: built for a CPU, every thread a fiber, and compiled by nvcc."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import triton

ROOT = Path(__file__).parents[1]
HOST = ROOT / "tests/host"
SHARED = {"80": 166912, "86": 101376, "89": 101376, "90a": 232448, "120": 101376}  # bytes per block
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_COMPILER = shutil.which("g++") or shutil.which("c++")


def build(directory, source, *flags):
    """Build the program of a source in ``tests/host``, or of one at an absolute path."""
    program = directory / "kernel"
    include = ["-I", HOST, "-I", ROOT / "csrc"]
    command = [_COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *flags, *include]
    subprocess.run(
        [*command, HOST / source, "-o", program], check=True, capture_output=True, text=True
    )
    return program


def run(program, case, seconds=100, **environment):
    """Run the program on one case.

    Raises:
        TimeoutError: it did not end in time, as when a thread waits for ever.
    """
    try:
        return subprocess.run(
            [program, *case.split()],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(case) from error


def build_with_fault(directory, source, header, right, wrong):
    """Build the program with one place of a header of ``csrc`` changed."""
    shutil.copytree(ROOT / "csrc", directory / "csrc")
    shutil.copytree(HOST, directory / "tests/host")
    text = (directory / "csrc" / header).read_text()
    assert text.count(right) == 1, right
    (directory / "csrc" / header).write_text(text.replace(right, wrong))
    return build(directory, directory / "tests/host" / source, "-Wno-error")


def compiled(directory, architecture, source):
    """Compile a source of ``csrc``: what nvcc printed, and the machine code."""
    cubin, code = directory / "kernel.cubin", f"arch=compute_{architecture},code=sm_{architecture}"
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        "-Xptxas",
        "-v",
        "-cubin",
        f"-gencode={code}",
        "-o",
        cubin,
    ]
    said = subprocess.run(
        [*command, ROOT / "csrc" / source], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    dump = subprocess.run(
        [_TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True
    )
    return said.stderr, dump.stdout


def wasted(said):
    """All sizes of stack frames and register spills that nvcc printed, in bytes."""
    return {int(size) for size in re.findall(r"(\d+) bytes (?:stack|spill)", said)}
