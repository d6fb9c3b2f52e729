"""Soft spatial attention. B batch, Q queries (heads), P places, K, V key and value channels."""

from torch import Tensor


def attend(
    queries_BQK: Tensor, keys_BPK: Tensor, values_BPV: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Answers (B, Q, V) and the maps (B, Q, P) they were read with (S3TA sec. 3).

    A map is the softmax over places of the inner products of query and keys, times `scale`; one map
    serves all value channels; an answer is the sum over places of map times values.
    """
    logits_BQP = queries_BQK @ keys_BPK.transpose(1, 2)
    maps_BQP = (logits_BQP * scale if scale != 1.0 else logits_BQP).softmax(dim=-1)
    return maps_BQP @ values_BPV, maps_BQP
