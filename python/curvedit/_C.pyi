def syrk_accumulate(
    sums: list[tuple[int, int]],
    x: int,
    dtype: int,
    dim: int,
    token_stride: int,
    dim_stride: int,
    offsets: list[int],
    threads: int,
    instruction_set: str = "",
) -> None: ...
def syrk_accumulate_cuda(
    out: int,
    x: int,
    weight: int,
    offsets: int,
    partial: int,
    dtype: int,
    tokens: int,
    dim: int,
    token_stride: int,
    dim_stride: int,
    groups: int,
    splits: int,
    stream: int,
) -> None: ...
def syrk_accumulate_wgmma(
    out: int,
    x: int,
    low: int,
    offsets: int,
    partial: int,
    dtype: int,
    tokens: int,
    dim: int,
    token_stride: int,
    groups: int,
    stream: int,
) -> None: ...
def syrk_partial_wgmma(tokens: int, dim: int, groups: int, has_low: bool) -> int: ...
def scale_tokens_cuda(
    out: int,
    low: int,
    x: int,
    weight: int,
    dtype: int,
    out_dtype: int,
    tokens: int,
    dim: int,
    token_stride: int,
    dim_stride: int,
    width: int,
    stream: int,
) -> None: ...
def second_moment_accumulate(
    out: int,
    g: tuple[int, int, int, int, int],
    a: tuple[int, int, int, int, int],
    offsets: list[int],
    threads: int,
    instruction_set: str = "",
) -> None: ...
def instruction_sets(op: str) -> list[str]: ...
def staircase_limits(
    lam: int, m: int, mu: int, n: int, keep_mass: float, limits: int
) -> tuple[float, int, float]: ...
def cuda_architectures() -> str: ...
