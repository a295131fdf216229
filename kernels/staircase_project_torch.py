"""``staircase_project`` with torch's products, in the order of the cheapest plan.

Besides the result, memory is needed for one chunk of lines only: an eighth of them at most.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from curvedit.kernels import staircase_project_ref as dense
from curvedit.kernels.staircase_project_plan import Band, Part, Plan, plan

# Rows that are masked, or converted from half precision, at a time; or an eighth of all rows.
_STRIP = 512


def staircase_project(
    w: Tensor,  # (d_out, d_in) or (batch, d_out, d_in), any floating dtype
    u_out: Tensor,  # (…, d_out, d_out)
    u_in: Tensor,  # (…, d_in, d_in)
    limits: Tensor,  # (…, d_out) int, non-increasing
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T`` in the bases' dtype, ``M_ij = 1`` if ``j < limits[i]``."""
    if w.ndim == 3:
        return _stacked(_project, w, u_out, u_in, limits)
    return _project(w, u_out, u_in, limits)


def staircase_rotate(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """The forward half, ``(U_G^T W U_A) * M``.

    Its result serves every staircase inside ``limits``. Shapes and errors are those of
    ``staircase_project``.
    """
    if w.ndim == 3:
        return _stacked(_rotate, w, u_out, u_in, limits)
    return _rotate(w, u_out, u_in, limits)


def staircase_restore(components: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    """The back half, ``U_G (C * M) U_A^T``.

    ``components`` must hold everything inside ``limits``. Shapes and errors are those of
    ``staircase_project``.
    """
    if components.ndim == 3:
        return _stacked(_restore, components, u_out, u_in, limits)
    return _restore(components, u_out, u_in, limits)


def masked_project(
    w: Tensor,  # (d_out, d_in), any floating dtype
    u_out: Tensor,  # (d_out, d_out)
    u_in: Tensor,  # (d_in, d_in)
    mask: Tensor,  # (d_out, ceil(d_in / 8)) uint8, as numpy.packbits packs rows
) -> Tensor:
    """``U_G ((U_G^T W U_A) * M) U_A^T``: (d_out, d_in), in the bases' dtype.

    ``M`` is any set of components, the bits of ``mask``.
    """
    result = torch.zeros_like(w, dtype=u_out.dtype)
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=w.device)
    for rows in _strips(w.shape[0]):
        basis = u_out[:, rows]
        rotated = _times(basis.mT, w)
        bits = mask[rows, :, None] >> shifts & 1
        kept = (rotated @ u_in).mul_(bits.flatten(1)[:, : w.shape[1]])
        result.addmm_(basis, torch.mm(kept, u_in.mT, out=rotated))
    return result


def _stacked(
    one: Callable[..., Tensor], w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor
) -> Tensor:
    result = torch.empty_like(w, dtype=u_out.dtype)
    for index, target in enumerate(result):
        target.copy_(one(w[index], u_out[index], u_in[index], limits[index]))
    return result


def _project(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    todo = _plan(limits, w)
    if not (todo.pays or w.is_cuda):
        return (
            dense.staircase_project(w.to(u_out.dtype), u_out, u_in, limits)
            if todo.operations
            else w.to(u_out.dtype, copy=True)
        )
    sign, is_first = (-1, False) if todo.is_complement else (1, True)
    result = (
        w.to(u_out.dtype, copy=True)
        if todo.is_complement
        else torch.empty_like(w, dtype=u_out.dtype)
    )
    for part, chunk, source, u, v, out in _chunks(todo, w, u_out, u_in, result):
        basis = u[:, _all(chunk)]
        lines = _times(basis.mT, source)
        for band in chunk:
            own, columns = lines[_of(band, chunk)], v[:, band.low : band.high]
            torch.mm(_cut(own @ columns, band, part), columns.mT, out=own)
        out.addmm_(basis, lines, beta=0 if is_first else 1, alpha=sign)
        is_first = False
    return result.zero_() if is_first else result


def _rotate(w: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    components = torch.zeros_like(w, dtype=u_out.dtype)
    for part, chunk, source, u, v, out in _chunks(
        _plan(limits, w, complement=False), w, u_out, u_in, components
    ):
        lines = _times(u[:, _all(chunk)].mT, source)
        for band in chunk:
            columns = slice(band.low, band.high)
            out[band.start : band.stop, columns] += _cut(
                lines[_of(band, chunk)] @ v[:, columns], band, part
            )
    return components


def _restore(components: Tensor, u_out: Tensor, u_in: Tensor, limits: Tensor) -> Tensor:
    result, todo = torch.zeros_like(components), _plan(limits, components, complement=False)
    for part, chunk, source, u, v, out in _chunks(todo, components, u_out, u_in, result):
        lines = source.new_empty(chunk[-1].stop - chunk[0].start, source.shape[1])
        for band in chunk:
            columns = slice(band.low, band.high)
            kept = _cut(source[band.start : band.stop, columns].clone(), band, part)
            torch.mm(kept, v[:, columns].mT, out=lines[_of(band, chunk)])
        out.addmm_(u[:, _all(chunk)], lines)
    return result


def _plan(limits: Tensor, w: Tensor, *, complement: bool | None = None) -> Plan:
    return plan(limits.cpu().numpy(), w.shape[1], complement=complement)


def _chunks(
    todo: Plan, source: Tensor, u_out: Tensor, u_in: Tensor, out: Tensor
) -> Iterator[tuple[Part, list[Band], Tensor, Tensor, Tensor, Tensor]]:
    """Every chunk, with source, bases and result transposed where its lines are columns."""
    for part in todo.parts:
        turned = (source, u_out, u_in, out) if part.by_rows else (source.mT, u_in, u_out, out.mT)
        for chunk in part.chunks():
            yield part, chunk, *turned


def _all(chunk: list[Band]) -> slice:
    return slice(chunk[0].start, chunk[-1].stop)


def _of(band: Band, chunk: list[Band]) -> slice:
    """The band's rows within its chunk."""
    return slice(band.start - chunk[0].start, band.stop - chunk[0].start)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in left's dtype, without a converted copy of all of ``right``."""
    if left.dtype == right.dtype:
        return left @ right
    total = left.new_zeros(left.shape[0], right.shape[1])
    for rows in _strips(right.shape[0]):
        total.addmm_(left[:, rows], right[rows].to(left.dtype))
    return total


def _strips(size: int) -> Iterator[slice]:
    height = min(_STRIP, max(32, size // 8))
    for start in range(0, size, height):
        yield slice(start, start + height)


def _cut(block: Tensor, band: Band, part: Part) -> Tensor:
    """Zero whatever lies outside each line's own span, in place."""
    lines = slice(band.start - part.first, band.stop - part.first)
    column = torch.arange(band.low, band.high, device=block.device)
    begin, end = part.begin[lines], part.end[lines]
    if begin.max() > band.low:
        block.masked_fill_(column < torch.from_numpy(begin).to(block.device)[:, None], 0)
    if end.min() < band.high:
        block.masked_fill_(column >= torch.from_numpy(end).to(block.device)[:, None], 0)
    return block
