"""Gram matrices of a reader's inputs, and what least squares makes of them.

A reader (o_proj, down_proj) computes W x.  With H = Σ x xᵀ over calibration tokens, everything
that can be asked about leaving out some of its inputs has an answer in closed form.
"""

# Shape suffixes:  N = tokens,  H = outputs of a reader,  C = its inputs,  K = inputs that stay,
# U = units,  S = channels of a unit.

import math

import torch
from torch import Tensor

WIDE = 4096  # inputs beyond which a Gram is held and factorized in float32, not float64


class Gram:
    """Σ x xᵀ and Σ x of a linear's inputs, added up batch by batch on one device."""

    def __init__(self, num_channels: int, device: torch.device | str = "cpu"):
        dtype = torch.float64 if num_channels <= WIDE else torch.float32
        self.count = 0
        self.sum_C = torch.zeros(num_channels, dtype=torch.float64, device=device)
        self.products_CC = torch.zeros(num_channels, num_channels, dtype=dtype, device=device)

    def add(self, inputs_NC: Tensor) -> None:
        """Add tokens; float32 products of one batch, summed in the Gram's dtype."""
        self.count += len(inputs_NC)
        self.sum_C += inputs_NC.sum(dim=0, dtype=torch.float64)
        if self.products_CC.dtype == inputs_NC.dtype:
            self.products_CC.addmm_(inputs_NC.T, inputs_NC)
        else:
            self.products_CC += inputs_NC.T @ inputs_NC

    @property
    def mean_C(self) -> Tensor:
        """Mean of the inputs, float64."""
        return self.sum_C / self.count

    def centred_CC(self) -> Tensor:
        """Σ (x − mean)(x − mean)ᵀ."""
        mean_C = self.mean_C
        outer_CC = torch.outer(mean_C, self.sum_C).to(self.products_CC.dtype)
        return self.products_CC - outer_CC


def refit(weight_HC: Tensor, gram_CC: Tensor, kept_K: Tensor, damping: float) -> Tensor:
    """The weights of the kept inputs that come closest to what all inputs gave; (H, K).

    W' = (W H_:K + λ W_K)(H_KK + λ I)⁻¹ minimises ‖W X − W' X_K‖² + λ ‖W' − W_K‖², where λ is
    `damping` times the mean of H's diagonal.  Computed in the Gram's dtype, returned in it.
    """
    weight_HC = weight_HC.to(gram_CC)
    ridge = damping * float(gram_CC.diagonal().mean())
    target_HK = weight_HC @ gram_CC[:, kept_K] + ridge * weight_HC[:, kept_K]
    factor_KK = _factor(gram_CC[kept_K][:, kept_K], ridge)
    return torch.cholesky_solve(target_HK.T, factor_KK).T


def elimination(
    weight_HC: Tensor, gram_CC: Tensor, channels: int, damping: float, rounds: int
) -> Tensor:
    """What each unit costs when the cheapest leave first and the others are refit; (U,) float64.

    A unit S costs tr(W_S ((H⁻¹)_SS)⁻¹ W_Sᵀ), the exact rise of ‖W X − W' X_K‖² when it leaves the
    units K and the rest is refit.  In each of `rounds` rounds the lowest 1/rounds of all units
    leave together.  Costs rise strictly in the order of leaving, so that ranking them is that
    order: where greed makes a later unit cheaper, it counts as much as the one before.
    """
    num_units = weight_HC.shape[1] // channels
    batch = -(-num_units // rounds)
    ridge = damping * float(gram_CC.diagonal().mean())
    left_U = torch.arange(num_units, device=gram_CC.device)
    costs_U = torch.zeros(num_units, dtype=torch.float64)
    floor = 0.0
    while len(left_U):
        rise_U = _rises(weight_HC.to(gram_CC), gram_CC, left_U, channels, ridge).cpu()
        leaving = rise_U.argsort(stable=True)[:batch]
        for position in leaving.tolist():
            floor = max(float(rise_U[position]), math.nextafter(floor, math.inf))
            costs_U[left_U[position]] = floor
        stays = torch.ones(len(left_U), dtype=torch.bool)
        stays[leaving] = False
        left_U = left_U[stays.to(left_U.device)]
    return costs_U


def channels_of(units_U: Tensor, channels: int) -> Tensor:
    """The inputs that units hold, in the units' order; (units · channels,)."""
    within_S = torch.arange(channels, device=units_U.device)
    return (units_U[:, None] * channels + within_S).flatten()


def _rises(
    weight_HC: Tensor, gram_CC: Tensor, left_U: Tensor, channels: int, ridge: float
) -> Tensor:
    """How much the error rises when one of the units that are left leaves; (units left,)."""
    kept_K = channels_of(left_U, channels)
    factor_KK = _factor(gram_CC[kept_K][:, kept_K], ridge)
    target_HK = weight_HC @ gram_CC[:, kept_K] + ridge * weight_HC[:, kept_K]
    fitted_KH = torch.cholesky_solve(target_HK.T, factor_KK)
    inverse_KK = torch.cholesky_inverse(factor_KK)
    fitted_USH = fitted_KH.view(len(left_U), channels, -1)
    blocks_USS = _diagonal_blocks(inverse_KK, channels)
    if channels == 1:
        return (fitted_USH.square().sum(dim=(1, 2)) / blocks_USS[:, 0, 0]).double()
    solved_USH = torch.linalg.solve(blocks_USS, fitted_USH)
    return (fitted_USH * solved_USH).sum(dim=(1, 2), dtype=torch.float64)


def _diagonal_blocks(matrix_KK: Tensor, size: int) -> Tensor:
    grid = matrix_KK.view(len(matrix_KK) // size, size, -1, size)
    return grid.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _factor(matrix_KK: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of matrix + ridge · I; the ridge doubles until rounding allows it."""
    scale = float(matrix_KK.diagonal().mean()) or 1.0
    ridge = max(ridge, torch.finfo(matrix_KK.dtype).eps * scale)
    matrix_KK.diagonal().add_(ridge)
    while True:
        factor_KK, failed = torch.linalg.cholesky_ex(matrix_KK)
        if not failed:
            return factor_KK
        matrix_KK.diagonal().add_(ridge)
        ridge *= 2
