"""Gram matrices of a reader's inputs, and what least squares makes of them.

A reader (o_proj, down_proj) computes W x.  With H = Σ x xᵀ over calibration tokens, everything
that can be asked about leaving out some of its inputs has an answer in closed form.
"""

# Shape suffixes:  N = tokens,  H = outputs of a reader,  C = its inputs,  K = inputs that stay,
# U = units,  S = channels of a unit,  R = rank.

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning.errors import InvalidInput

Key = tuple[int, str]  # layer, linear
WIDE = 4096  # inputs beyond which a Gram is held and factorized in float32, not float64


class Gram:
    """Σ x xᵀ and Σ x of a linear's inputs, added up batch by batch on one device."""

    def __init__(self, num_channels: int, device: torch.device | str = "cpu"):
        shape = num_channels, num_channels
        self.count = 0
        self.sum_C = torch.zeros(num_channels, dtype=torch.float64, device=device)
        self.products_CC = torch.zeros(shape, dtype=_dtype(num_channels), device=device)

    def add(self, inputs_NC: Tensor) -> None:
        """Add tokens; float32 sums and products of one batch, summed in wider dtypes."""
        self.count += len(inputs_NC)
        self.sum_C += inputs_NC.sum(dim=0)
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


class StoredGrams(Mapping[Key, Tensor]):
    """Σ x xᵀ of many linears in a directory, float32: read when asked for, never kept in memory."""

    def __init__(self, directory: Path):
        self.directory = directory

    def store(self, key: Key, gram: Gram) -> None:
        """Write the Gram of a linear."""
        self.put(key, gram.products_CC)

    def put(self, key: Key, products_CC: Tensor) -> None:
        """Write Σ x xᵀ of a linear."""
        self.directory.mkdir(exist_ok=True)
        save_file({"products": products_CC.to("cpu", torch.float32)}, self._path(key))

    def __getitem__(self, key: Key) -> Tensor:
        if not self._path(key).is_file():
            raise KeyError(key)
        products_CC: Tensor = load_file(self._path(key))["products"]
        return products_CC.to(_dtype(len(products_CC)))

    def __iter__(self) -> Iterator[Key]:
        for path in sorted(self.directory.glob("*.safetensors")):
            layer, linear, _ = path.name.split(".")
            yield int(layer), linear

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, key: Key) -> Path:
        return self.directory / f"{key[0]}.{key[1]}.safetensors"


class SummedGrams(Mapping[Key, Tensor]):
    """The sums of two sets of Grams of the same linears, added when asked for."""

    def __init__(self, one: Mapping[Key, Tensor], other: Mapping[Key, Tensor]):
        self._one, self._other = one, other

    def __getitem__(self, key: Key) -> Tensor:
        return self._one[key] + self._other[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._one)

    def __len__(self) -> int:
        return len(self._one)


def refit(
    weight_HC: Tensor,
    gram_CC: Tensor,
    kept_K: Tensor,
    damping: float,
    anchor_HK: Tensor | None = None,
) -> Tensor:
    """The weights of the kept inputs that come closest to what all inputs gave; (H, K).

    W' = (W H_:K + λ A)(H_KK + λ I)⁻¹ minimises ‖W X − W' X_K‖² + λ ‖W' − A‖², where λ is `damping`
    times the mean of H's diagonal and the anchor A is W_K if none is given.  Computed in the
    Gram's dtype, returned in it, as W_K and what the pruned inputs P and the anchor add to it:
    W' = W_K + (W_P H_PK + λ (A − W_K))(H_KK + λ I)⁻¹.
    """
    weight_HC = weight_HC.to(gram_CC)
    factor_KK, ridge = _factor(gram_CC[kept_K][:, kept_K], _ridge(gram_CC, damping))
    pruned_C = torch.ones(len(gram_CC), dtype=torch.bool, device=gram_CC.device)
    pruned_C[kept_K] = False
    kept_HK = weight_HC[:, kept_K]
    moved_HK = weight_HC[:, pruned_C] @ gram_CC[pruned_C][:, kept_K]
    if anchor_HK is not None:
        moved_HK += ridge * (anchor_HK.to(gram_CC) - kept_HK)
    return kept_HK + torch.cholesky_solve(moved_HK.T, factor_KK).T


def fit(
    products_HK: Tensor, gram_CC: Tensor, kept_K: Tensor, damping: float, anchor_HK: Tensor
) -> Tensor:
    """The weights of the kept inputs that come closest to any goal y; (H, K).

    W' = (Σ y x_Kᵀ + λ A)(H_KK + λ I)⁻¹ minimises ‖Y − W' X_K‖² + λ ‖W' − A‖²; λ as in `refit`.
    """
    factor_KK, ridge = _factor(gram_CC[kept_K][:, kept_K], _ridge(gram_CC, damping))
    target_HK = products_HK.to(gram_CC) + ridge * anchor_HK.to(gram_CC)
    return torch.cholesky_solve(target_HK.T, factor_KK).T


def fit_low_rank(
    products_HK: Tensor, gram_KK: Tensor, damping: float, anchor_HK: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """The matrix b a of at most a rank that comes closest to any goal y; (H, R) and (R, K).

    It minimises ‖Y − b a X‖² + λ ‖b a − A‖² with an anchor A, λ as in `refit`: with the Cholesky
    factor L of Σ x xᵀ + λ I and Z = (Σ y xᵀ + λ A) L⁻ᵀ, b a = Zʳ L⁻¹, Zʳ the R leading singular
    atoms of Z.  Reduced-rank regression: Izenman, J. Multivariate Analysis 1975,
    https://doi.org/10.1016/0047-259X(75)90042-1.  Computed in float32, so λ must not be small.
    """
    factor_KK, ridge = _factor(gram_KK.float(), _ridge(gram_KK, damping))
    target_HK = products_HK.float() + ridge * anchor_HK
    whitened_KH = torch.linalg.solve_triangular(factor_KK, target_HK.T, upper=False)
    left_HR, right_KR = _leading(whitened_KH.T, rank)
    return left_HR, torch.linalg.solve_triangular(factor_KK.T, right_KR, upper=True).T


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
    weight_HK = weight_HC.to(gram_CC)
    inverse_KK = torch.cholesky_inverse(_factor(gram_CC, _ridge(gram_CC, damping))[0])
    left_U = torch.arange(num_units)
    costs_U = torch.zeros(num_units, dtype=torch.float64)
    floor = 0.0
    while len(left_U):
        rise_U = _rises(weight_HK, inverse_KK, channels).cpu()
        order_U = rise_U.argsort(stable=True)
        leaving_U, staying_U = order_U[:batch], order_U[batch:].sort().values
        for unit in leaving_U.tolist():
            floor = max(float(rise_U[unit]), math.nextafter(floor, math.inf))
            costs_U[left_U[unit]] = floor
        left_U = left_U[staying_U]
        if len(left_U):
            leaving_S, staying_K = (
                channels_of(units_U.to(gram_CC.device), channels)
                for units_U in (leaving_U, staying_U)
            )
            weight_HK, inverse_KK = _without(weight_HK, inverse_KK, leaving_S, staying_K)
    return costs_U


def channels_of(units_U: Tensor, channels: int) -> Tensor:
    """The inputs that units hold, in the units' order; (units · channels,)."""
    within_S = torch.arange(channels, device=units_U.device)
    return (units_U[:, None] * channels + within_S).flatten()


def _dtype(num_channels: int) -> torch.dtype:
    return torch.float64 if num_channels <= WIDE else torch.float32


def _rises(weight_HK: Tensor, inverse_KK: Tensor, channels: int) -> Tensor:
    """How much the error rises when one of the units that are left leaves; (units left,)."""
    num_units = len(inverse_KK) // channels
    weight_USH = weight_HK.T.reshape(num_units, channels, -1)
    squares_USS = weight_USH @ weight_USH.mT
    grid_USUS = inverse_KK.view(num_units, channels, num_units, channels)
    blocks_USS = grid_USUS.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    solved_USS = torch.linalg.solve(blocks_USS, squares_USS)
    rises_U: Tensor = solved_USS.diagonal(dim1=1, dim2=2).sum(dim=1, dtype=torch.float64)
    return rises_U


def _without(
    weight_HK: Tensor, inverse_KK: Tensor, leaving_S: Tensor, staying_K: Tensor
) -> tuple[Tensor, Tensor]:
    """The refit weights of the inputs that stay, and the inverse of their damped Gram.

    One step of a block Cholesky factorization of the inverse, with LLᵀ = (H⁻¹)_SS and
    M = L⁻¹ (H⁻¹)_SK: W_K − W_S L⁻ᵀ M and (H⁻¹)_KK − Mᵀ M.
    """
    rows_SK = inverse_KK[leaving_S]
    factor_SS, _ = _factor(rows_SK[:, leaving_S], 0.0)
    half_SK = torch.linalg.solve_triangular(factor_SS, rows_SK[:, staying_K], upper=False)
    lost_SH = torch.linalg.solve_triangular(factor_SS, weight_HK.T[leaving_S], upper=False)
    weight_HK = weight_HK[:, staying_K].addmm_(lost_SH.T, half_SK, alpha=-1)
    inverse_KK = inverse_KK[staying_K][:, staying_K].addmm_(half_SK.T, half_SK, alpha=-1)
    return weight_HK, inverse_KK


def _leading(matrix_HK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a matrix by at most a rank, as b (H, R) and aᵀ (K, R).

    By the smaller one of its two squares, which is all that is decomposed.
    """
    if len(matrix_HK) > matrix_HK.shape[1]:
        right_KR, left_HR = _leading(matrix_HK.T, rank)
        return left_HR, right_KR
    left_HR = torch.linalg.eigh(matrix_HK @ matrix_HK.T).eigenvectors[:, -rank:]
    return left_HR, matrix_HK.T @ left_HR


def _ridge(gram_CC: Tensor, damping: float) -> float:
    return damping * float(gram_CC.diagonal().mean())


def _factor(matrix_KK: Tensor, ridge: float) -> tuple[Tensor, float]:
    """The Cholesky factor of a matrix with a ridge, and the ridge.

    It doubles until rounding lets the matrix be positive definite.
    """
    if not matrix_KK.isfinite().all():
        raise InvalidInput("base", "its activations on the calibration text are not finite")
    ridge = max(ridge, torch.finfo(matrix_KK.dtype).tiny)  # all inputs may be zero
    damped_KK = matrix_KK.clone()
    damped_KK.diagonal().add_(ridge)
    factor_KK, failed = torch.linalg.cholesky_ex(damped_KK)
    while failed:
        damped_KK.diagonal().add_(ridge)
        ridge *= 2
        factor_KK, failed = torch.linalg.cholesky_ex(damped_KK)
    return factor_KK, ridge
