"""Fréchet distance between Gaussians fitted to two sets of features. Tensors only.

B clips, D feature dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from oseg_video.types import OsegVideoError


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of a set of feature vectors, in float64; their size does not depend on the set's."""

    count: int
    """Number of vectors."""
    mean_D: Tensor
    scatter_DD: Tensor
    """Sum of the outer products of deviations from the mean."""

    @classmethod
    def empty(cls, dim: int) -> Moments:
        """Moments of no vector of D = `dim` dimensions."""
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, features_BD: Tensor) -> Moments:
        """Moments of features [B, D], B >= 1. Raises OsegVideoError for another shape."""
        if features_BD.ndim != 2 or not len(features_BD):
            raise OsegVideoError(
                f"moments need feature vectors [clips, dimensions], got shape {tuple(features_BD.shape)}"
            )
        features_BD = features_BD.double().cpu()
        mean_D = features_BD.mean(dim=0)
        centred_BD = features_BD - mean_D
        return cls(len(features_BD), mean_D, centred_BD.T @ centred_BD)

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub and LeVeque 1979): no large sums that cancel."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        step_D = other.mean_D - self.mean_D
        between_DD = torch.outer(step_D, step_D) * (self.count * other.count / count)
        return Moments(
            count,
            self.mean_D + step_D * (other.count / count),
            self.scatter_DD + other.scatter_DD + between_DD,
        )

    def covariance(self, ddof: int = 1) -> Tensor:
        """Scatter divided by count - ddof, [D, D]. Raises OsegVideoError for fewer than two vectors."""
        if self.count < 2:
            raise OsegVideoError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        return self.scatter_DD / (self.count - ddof)

    @cached_property
    def root_scatter_DD(self) -> Tensor:
        """Symmetric square root of the scatter; kept, for a reference that many sets are compared with."""
        eigenvalues_D, vectors_DD = torch.linalg.eigh(self.scatter_DD)
        root_DD: Tensor = (vectors_DD * eigenvalues_D.clamp(min=0).sqrt()) @ vectors_DD.T
        return root_DD


def moments_of_rows(rows_ND: Tensor, index: Tensor, *, chunk: int = 1024) -> Moments:
    """Moments of the chosen rows, int64 indices [n] with repetitions, `chunk` of them in memory at a time."""
    total = Moments.empty(rows_ND.shape[1])
    for part in index.sort().values.split(chunk):
        total = total + Moments.of(rows_ND[part])
    return total


def frechet_distance(one: Moments, other: Moments, *, ddof: int = 1) -> float:
    """`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` (Dowson and Landau 1982; FID, arXiv 1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of `S2^(1/2) S1 S2^(1/2)`, which is
    symmetric: no matrix square root of a non-symmetric product, no complex parts to drop.

    ddof: covariances are divided by count - ddof; implementations differ (1 is unbiased).
    """
    covariances = one.covariance(ddof), other.covariance(ddof)
    root_DD = other.root_scatter_DD / (other.count - ddof) ** 0.5
    product_DD = root_DD @ covariances[0] @ root_DD
    cross = torch.linalg.eigvalsh((product_DD + product_DD.T) / 2).clamp(min=0).sqrt().sum()
    traces = covariances[0].trace() + covariances[1].trace()
    distance = (one.mean_D - other.mean_D).square().sum() + traces - 2 * cross
    return max(float(distance), 0.0)
