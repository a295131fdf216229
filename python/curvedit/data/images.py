"""Images with labels, for classifiers."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def image_batches(path: str | Path, *, batch_size: int = 32) -> list[dict[str, Tensor]]:
    """Batches for a classifier from a safetensors file.

    Args:
        path: The file, with ``pixel_values`` (N, C, H, W) and ``labels`` (N,).
        batch_size: Images per batch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds other tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: expected a .safetensors file of images, got {path}")
    try:
        content = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"data: expected a safetensors file, got {path}, which is damaged or of another format "
            f"({error})"
        ) from error
    if set(content) != {"pixel_values", "labels"} or len(content["pixel_values"]) != len(
        content["labels"]
    ):
        shapes = {key: tuple(value.shape) for key, value in content.items()}
        raise ValueError(
            f"data: expected pixel_values (N, C, H, W) and labels (N,) in {path}, got {shapes}"
        )
    parts = zip(
        content["pixel_values"].split(batch_size), content["labels"].split(batch_size), strict=True
    )
    return [{"pixel_values": pixels, "labels": labels} for pixels, labels in parts]
