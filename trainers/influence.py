"""The influence of a sample on the parameters of h, by the eigenvalue-corrected Kronecker-factored
curvature of the training loss (EK-FAC: George et al. 2018, arXiv 1806.03884; for influence, Grosse
et al. 2023, arXiv 2308.03296).

Koh & Liang (2017, arXiv 1703.04730): without sample z, of N, a convex model at its optimum moves by
H⁻¹ ∇ℓ(z) / N to first order. Here θ = (W, b) of the linear classifier h; φ stays as it is. With

    a = (φ(x), 1)      (D,)  the features and the bias' input: D is one more than φ has features
    p = softmax(h(a))  (C,)
    e = p − onehot(y)  (C,)

a sample's gradient is ∇ℓ = e aᵀ, (C, D), and H, the generalised Gauss–Newton matrix, which for a
linear classifier is the Hessian, is E[(diag(p) − p pᵀ) ⊗ a aᵀ]. It is taken to be diagonal in the
eigenbasis of its Kronecker factors; the diagonal itself is exact. No (C, D) matrix a sample is ever
made: each pass over the data is a few matrix products a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Basis", "eigenbasis", "factors", "influence_norms", "second_moments", "with_bias"]


@dataclass(frozen=True)
class Basis:
    """features_DD, classes_CC: U_A and U_G, eigenvectors in columns."""

    features_DD: Tensor
    classes_CC: Tensor


def with_bias(features_NF: Tensor) -> Tensor:
    """a = (φ(x), 1): float64 (N, F + 1)."""
    features_NF = features_NF.double()
    return torch.cat([features_NF, features_NF.new_ones(len(features_NF), 1)], 1)


def factors(a_ND: Tensor, p_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over a batch of a aᵀ, (D, D), and of diag(p) − p pᵀ, (C, C): A and G, times N."""
    return a_ND.T @ a_ND, torch.diag(p_NC.sum(0)) - p_NC.T @ p_NC


def eigenbasis(a_DD: Tensor, g_CC: Tensor) -> Basis:
    """U_A and U_G of the symmetric A and G. A factor's scale does not matter. On the CPU, so that
    every device gets the same; 0.1 s at D = 513, some 10 s at 4097."""

    def vectors(factor: Tensor) -> Tensor:
        found: Tensor = torch.linalg.eigh(factor.cpu()).eigenvectors
        return found.contiguous().to(factor.device)  # LAPACK's are stored by columns

    return Basis(vectors(a_DD), vectors(g_CC))


def second_moments(a_ND: Tensor, p_NC: Tensor, basis: Basis) -> Tensor:
    """Sum over a batch of w_c v_d², (C, D): N times Λ, the diagonal of H in the basis. v = U_Aᵀ a;
    w_c = Σ_k p_k U_G[k, c]² − (U_Gᵀ p)_c² is the variance of U_G[k, c] with k drawn from p, so Λ is
    that of the true Fisher matrix; the empirical one would have the label's e in its place."""
    w_NC = p_NC @ basis.classes_CC.square() - (p_NC @ basis.classes_CC).square()
    v_ND = a_ND @ basis.features_DD
    return w_NC.clamp(min=0).T @ v_ND.square()


def influence_norms(
    a_ND: Tensor, e_NC: Tensor, basis: Basis, moments_CD: Tensor, *, damping: float
) -> Tensor:
    """(N,) ‖(H + λI)⁻¹ ∇ℓ‖₂ with λ = damping · mean(Λ):

        score² = Σ_cd u_c² v_d² / (Λ_cd + λ)²,  u = U_Gᵀ e,  v = U_Aᵀ a

    moments_CD: Λ. Raises nothing for a damping of 0, which divides by zero where no training
    sample has curvature: all classes' logits may be shifted alike, for one. On digits, against
    exact retraining of h, 0.1 and 1 ranked best (`benchmarks/influence.py`).
    """
    inverse_CD = (moments_CD + damping * moments_CD.mean()).square().reciprocal()
    u_NC, v_ND = e_NC @ basis.classes_CC, a_ND @ basis.features_DD
    return ((u_NC.square() @ inverse_CD) * v_ND.square()).sum(1).sqrt()
