"""Soft spatial attention. B batch, Q queries (heads), P = H W places, K, V key and value channels,
D channels of the feature map."""

import torch
from torch import Tensor

from s3ta.basis import spatial_basis
from s3ta.settings import AttentionSettings, Basis


def keys_and_values(features_BDHW: Tensor, settings: AttentionSettings) -> tuple[Tensor, Tensor]:
    """A feature map, split by channel, with the spatial basis attached: (B, P, K), (B, P, V)."""
    batch, _, height, width = features_BDHW.shape
    places_BPD = features_BDHW.flatten(2).transpose(1, 2)
    basis_PS = _basis(height, width, settings, places_BPD.device, places_BPD.dtype)
    basis_BPS = basis_PS.expand(batch, -1, -1)
    keys, values = places_BPD.tensor_split([settings.key_channels], dim=-1)
    return torch.cat([keys, basis_BPS], -1), torch.cat([values, basis_BPS], -1)


_BASES: dict[tuple[int, int, int, Basis, torch.device, torch.dtype], Tensor] = {}


def _basis(
    height: int, width: int, settings: AttentionSettings, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(P, S), put on its device once: a copy in every pass would wait for the device."""
    key = (height, width, settings.basis_frequencies, settings.basis, device, dtype)
    if key not in _BASES:
        basis_HWS = spatial_basis(height, width, settings.basis_frequencies, settings.basis)
        _BASES[key] = basis_HWS.flatten(0, 1).to(device, dtype)
    return _BASES[key]


def attend(
    queries_BQK: Tensor, keys_BPK: Tensor, values_BPV: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Answers (B, Q, V) and the maps (B, Q, P) they were read with (S3TA sec. 3).

    A map is the softmax over places of the inner products of query and keys, times `scale`; one map
    serves all value channels; an answer is the sum over places of map times values.
    """
    logits_BQP = queries_BQK @ keys_BPK.transpose(1, 2)
    maps_BQP = (logits_BQP * scale if scale != 1.0 else logits_BQP).softmax(dim=-1)
    return hold(maps_BQP, values_BPV), maps_BQP


def hold(maps_BQP: Tensor, values_BPV: Tensor) -> Tensor:
    """Answers (B, Q, V) read with given maps (B, Q, P), wherever the queries would have looked."""
    return maps_BQP @ values_BPV
