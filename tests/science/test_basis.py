"""The spatial basis against its formula."""

from math import cos, pi, sin

import pytest
import torch

from s3ta.basis import spatial_basis
from s3ta.settings import AttentionSettings, Basis


def test_the_first_place_is_all_ones() -> None:
    assert torch.equal(spatial_basis(5, 3, 2)[0, 0], torch.ones(4))


@pytest.mark.parametrize(
    ("i", "j", "u", "v"), [(1, 0, 1, 1), (0, 2, 1, 3), (3, 5, 2, 1), (2, 6, 3, 2)]
)
def test_a_channel_is_the_product_of_a_row_and_a_column_cosine(
    i: int, j: int, u: int, v: int
) -> None:
    basis = spatial_basis(height=4, width=7, frequencies=3)
    assert basis.shape == (4, 7, 9)
    assert basis.dtype == torch.float32
    expected = cos(pi * u * i / 4) * cos(pi * v * j / 7)
    assert basis[i, j, (u - 1) * 3 + v - 1].item() == pytest.approx(expected, abs=1e-7)


def test_rows_and_columns_swap_with_their_frequencies() -> None:
    wide = spatial_basis(4, 7, 3).view(4, 7, 3, 3)
    high = spatial_basis(7, 4, 3).view(7, 4, 3, 3)
    torch.testing.assert_close(wide, high.permute(1, 0, 3, 2))


@pytest.mark.parametrize(("basis", "frequencies"), [(Basis.cosine, 8), (Basis.fourier, 4)])
def test_the_paper_size_has_64_distinct_channels(basis: Basis, frequencies: int) -> None:
    columns = spatial_basis(28, 28, frequencies, basis).flatten(0, 1).double()
    assert columns.shape[1] == 64
    assert torch.linalg.matrix_rank(columns).item() == 64
    settings = AttentionSettings(basis=basis, basis_frequencies=frequencies)
    assert settings.basis_channels == 64


@pytest.mark.parametrize(("i", "j"), [(0, 0), (1, 0), (0, 2), (3, 5)])
def test_fourier_channels_are_all_products_of_cosines_and_sines(i: int, j: int) -> None:
    basis = spatial_basis(height=4, width=7, frequencies=2, basis=Basis.fourier)
    assert basis.shape == (4, 7, 16)
    rows = [wave(pi * u * i / 4) for wave in (cos, sin) for u in (1, 2)]
    columns = [wave(pi * v * j / 7) for wave in (cos, sin) for v in (1, 2)]
    expected = [row * column for row in rows for column in columns]
    torch.testing.assert_close(basis[i, j], torch.tensor(expected))
