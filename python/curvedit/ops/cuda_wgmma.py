"""``syrk_accumulate`` by the tensor cores of Hopper GPUs."""

from torch import Tensor

from curvedit.ops.cuda import launch


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) bfloat16 or float16, rows in whole 16 bytes
    weight: None = None,
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t x_t x_t^T`` to the lower tiles of ``out``, in place, over all tokens or per group.

    Queued as :func:`curvedit.ops.cuda.syrk_accumulate` is.

    Raises:
        RuntimeError: CUDA refused the launch; the message is CUDA's.
    """
    launch(out, x, weight, offsets, hopper=True)
