"""Fréchet distance between Gaussians fitted to two sets of features. Tensors only.

B clips, D feature dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oseg_video.types import OsegVideoError


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of feature vectors, in float64."""

    count: int
    """Number of vectors."""
    mean_D: Tensor
    covariance_DD: Tensor
    """Unbiased (divided by count - 1)."""

    @classmethod
    def of(cls, features_BD: Tensor) -> Moments:
        """Moments of features [B, D]. Raises OsegVideoError for fewer than two vectors."""
        if features_BD.ndim != 2 or len(features_BD) < 2:
            raise OsegVideoError(
                f"need at least 2 feature vectors [clips, dimensions], got shape {tuple(features_BD.shape)}"
            )
        features_BD = features_BD.double()
        mean_D = features_BD.mean(dim=0)
        centred_BD = features_BD - mean_D
        covariance_DD = centred_BD.T @ centred_BD / (len(features_BD) - 1)
        return cls(len(features_BD), mean_D, covariance_DD)


def frechet_distance(one: Moments, other: Moments) -> float:
    """`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` (Dowson and Landau 1982; FID, arXiv 1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of `S1^(1/2) S2 S1^(1/2)`, which is
    symmetric: no matrix square root of a non-symmetric product, no complex parts to drop.
    """
    eigenvalues_D, vectors_DD = torch.linalg.eigh(one.covariance_DD)
    root_DD = (vectors_DD * eigenvalues_D.clamp(min=0).sqrt()) @ vectors_DD.T
    product_DD = root_DD @ other.covariance_DD @ root_DD
    cross = torch.linalg.eigvalsh((product_DD + product_DD.T) / 2).clamp(min=0).sqrt().sum()
    traces = one.covariance_DD.trace() + other.covariance_DD.trace()
    distance = (one.mean_D - other.mean_D).square().sum() + traces - 2 * cross
    return max(float(distance), 0.0)
