"""Backend ``wgmma``: ``syrk_accumulate`` on the tensor cores of Hopper GPUs."""

from torch import Tensor

from curvedit.ops.cuda import launch


def syrk_accumulate(
    out: Tensor,  # (tile_count(d), 128, 128) float32, contiguous; (groups, …) with offsets
    x: Tensor,  # (tokens, d) bfloat16 or float16; rows contiguous, in multiples of 16 bytes
    weight: None = None,
    offsets: Tensor | None = None,  # (groups + 1,) int64
) -> None:
    """Add ``sum_t x_t x_t^T``, over all tokens or per group, to the lower tiles of ``out``.

    Queued like :func:`curvedit.ops.cuda.syrk_accumulate`.

    Raises:
        RuntimeError: CUDA refused the launch; the message is CUDA's own.
    """
    launch(out, x, weight, offsets, hopper=True)
