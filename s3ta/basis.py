"""The fixed Fourier spatial basis that is concatenated to keys and values (S3TA sec. 3)."""

import math

import torch
from torch import Tensor

from s3ta.settings import Basis


def spatial_basis(height: int, width: int, frequencies: int, basis: Basis = Basis.cosine) -> Tensor:
    """Products of a wave along the rows and one along the columns: float32 (H, W, waves^2).

    With n frequencies the waves of a row i are, in this order,
    - cosine: cos(pi u i / H) for u in 1..n;
    - fourier: the same, then sin(pi u i / H) for u in 1..n;
    those of a column j likewise with v, j and W. Row wave a and column wave b, both counted from 0,
    make channel a * waves + b: n^2 channels, or (2 n)^2.

    The cosines follow Mott et al., on whose model the paper builds. ASSUMPTION: i and j count from
    0 (a replication counts from 1, which mirrors the basis and flips the sign of odd u or v).
    ASSUMPTION: cosine and sine have the same half periods per axis, and all products are taken.
    """
    rows_HU, columns_WV = _waves(height, frequencies, basis), _waves(width, frequencies, basis)
    return (rows_HU[:, None, :, None] * columns_WV[None, :, None, :]).flatten(2).float()


def _waves(length: int, frequencies: int, basis: Basis) -> Tensor:
    n = torch.arange(1, frequencies + 1, dtype=torch.float64)
    angles = math.pi * torch.arange(length, dtype=torch.float64)[:, None] * n / length
    both = [torch.cos(angles), torch.sin(angles)]
    return torch.cat(both if basis is Basis.fourier else both[:1], dim=1)
