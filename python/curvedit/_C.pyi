def syrk_accumulate(
    out: int,
    x: int,
    dtype: int,
    tokens: int,
    dim: int,
    token_stride: int,
    dim_stride: int,
    weight: int,
    threads: int,
) -> None: ...
def syrk_instruction_set() -> str: ...
def staircase_limits(
    lam: int, m: int, mu: int, n: int, keep_mass: float, limits: int
) -> tuple[float, int, float]: ...
def cuda_devices() -> int: ...
def cuda_architectures() -> str: ...
