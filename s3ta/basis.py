"""The fixed Fourier spatial basis that is concatenated to keys and values (S3TA sec. 3)."""

import math

import torch
from torch import Tensor


def spatial_basis(height: int, width: int, frequencies: int) -> Tensor:
    """cos(pi u i / H) cos(pi v j / W) for u, v in 1..n: float32 (H, W, n^2), channel (u-1) n + v-1.

    The form follows Mott et al., on whose model the paper builds. ASSUMPTION: i and j count from 0
    (a replication counts from 1, which mirrors the basis and flips the sign of odd u or v).
    """
    n = torch.arange(1, frequencies + 1, dtype=torch.float64)
    rows_HU = torch.cos(math.pi * torch.arange(height, dtype=torch.float64)[:, None] * n / height)
    columns_WV = torch.cos(math.pi * torch.arange(width, dtype=torch.float64)[:, None] * n / width)
    basis_HWUV = rows_HU[:, None, :, None] * columns_WV[None, :, None, :]
    return basis_HWUV.reshape(height, width, frequencies**2).float()
