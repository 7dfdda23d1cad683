"""The algebra of adapters: on one linear a LoRA is a bag of rank-one atoms, ΔW = Σ b_j a_jᵀ.

The order of the atoms says nothing, putting bags together adds their ΔW, and (a, b) is the same
atom as (c·a, b/c).  Everything here is computed from the factors, by QR where a spectrum is
wanted; the product of a bag is formed only by who asks for its `delta`.
"""

# Shape suffixes:  R = atoms,  I = inputs and  O = outputs of the linear,  K = min(R, I, O).

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.adapters.atoms import Adapter, Atoms, Key


@dataclass(frozen=True)
class Bag:
    """The atoms of one linear, the adapter's scale folded into b; float32."""

    a_RI: Tensor
    b_OR: Tensor

    @property
    def rank(self) -> int:
        """How many atoms there are: the rank of ΔW, or more."""
        return len(self.a_RI)

    @property
    def delta(self) -> Tensor:
        """ΔW itself, (outputs, inputs)."""
        return self.b_OR @ self.a_RI

    def select(self, index: Sequence[int] | Tensor) -> "Bag":
        """The atoms with these numbers, in this order."""
        chosen = torch.as_tensor(index, dtype=torch.long)
        return Bag(self.a_RI[chosen], self.b_OR[:, chosen])


Bags = Mapping[Key, Bag]


def fold(atoms: Atoms, rslora: bool = False) -> Bag:
    """What a linear of a file adds, scale and all: alpha / rank, or alpha / √rank with rsLoRA."""
    rank = len(atoms.a)
    scale = atoms.alpha / (math.sqrt(rank) if rslora else rank)
    return Bag(atoms.a.float(), atoms.b.float() * scale)


def bags_of(adapter: Adapter) -> dict[Key, Bag]:
    """All bags of an adapter."""
    rslora = bool(adapter.config.get("use_rslora"))
    return {key: fold(atoms, rslora) for key, atoms in adapter.atoms.items()}


def adapter_of(bags: Bags, dtype: torch.dtype = torch.float32) -> Adapter:
    """The plain LoRA of these bags: alpha is the rank of each linear, so that its scale is one."""
    rank = max(bag.rank for bag in bags.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    atoms = {
        key: Atoms(bag.a_RI.to(dtype), bag.b_OR.to(dtype), bag.rank)
        for key, bag in sorted(bags.items())
    }
    return Adapter(config, atoms)


def scale(bag: Bag, factor: float) -> Bag:
    """The bag of factor · ΔW."""
    return Bag(bag.a_RI, bag.b_OR * factor)


def cat(bags: Sequence[Bag], weights: Sequence[float]) -> Bag:
    """All atoms in one bag: the weighted sum of the ΔW, exactly."""
    scaled = [scale(bag, weight) for bag, weight in zip(bags, weights, strict=True)]
    return Bag(
        torch.cat([bag.a_RI for bag in scaled]), torch.cat([bag.b_OR for bag in scaled], dim=1)
    )


def canonical(bag: Bag) -> Bag:
    """The singular value atoms of ΔW, largest first: orthogonal, a and b of equal length.

    K atoms.  In each, the entry of a that is largest in absolute value is positive.
    """
    b_OK, values_K, a_KI = _svd(bag)
    root_K = values_K.clamp(min=0).sqrt()
    return positive(Bag(root_K[:, None] * a_KI, b_OK * root_K))


def spectrum(bag: Bag) -> Tensor:
    """The singular values of ΔW, descending; (K,)."""
    return _svd(bag)[1]


def norm(bag: Bag) -> float:
    """The Frobenius norm of ΔW, from the inner products of its atoms, (a · a')(b · b')."""
    products_RR = (bag.a_RI @ bag.a_RI.T).double() * (bag.b_OR.T @ bag.b_OR).double()
    return math.sqrt(max(0.0, float(products_RR.sum())))


def truncate(bag: Bag, rank: int) -> Bag:
    """The best approximation of ΔW by at most `rank` atoms, in canonical form."""
    return canonical(bag).select(range(min(rank, bag.rank, len(bag.b_OR), bag.a_RI.shape[1])))


def compact(bag: Bag) -> Bag:
    """As few atoms as ΔW needs, at least one: what float32 rounding fills is left out."""
    double = Bag(bag.a_RI.double(), bag.b_OR.double())
    rounding = torch.finfo(torch.float32).eps * double.a_RI.norm() * double.b_OR.norm()
    found = canonical(double).select(range(max(1, int((spectrum(double) > rounding).sum()))))
    return Bag(found.a_RI.float(), found.b_OR.float())


def balanced(bag: Bag) -> Bag:
    """The same atoms with a and b of equal length; an atom that adds nothing becomes zero."""
    length_a_R, length_b_R = bag.a_RI.norm(dim=1), bag.b_OR.norm(dim=0)
    ratio_R = (length_b_R / length_a_R).nan_to_num(0, 0, 0).sqrt()
    inverse_R = ratio_R.reciprocal().nan_to_num(0, 0, 0)
    return Bag(bag.a_RI * ratio_R[:, None], bag.b_OR * inverse_R)


def positive(bag: Bag) -> Bag:
    """The same atoms, the entry of each a that is largest in absolute value made positive."""
    largest_R1 = bag.a_RI.gather(1, bag.a_RI.abs().argmax(dim=1, keepdim=True))
    sign_R = torch.where(largest_R1[:, 0] < 0, -1.0, 1.0)
    return Bag(bag.a_RI * sign_R[:, None], bag.b_OR * sign_R)


def _svd(bag: Bag) -> tuple[Tensor, Tensor, Tensor]:
    """ΔW = U diag(S) V from two thin QRs; (O, K), (K,), (K, I)."""
    left_OK, left_KR = torch.linalg.qr(bag.b_OR)
    right_IK, right_KR = torch.linalg.qr(bag.a_RI.T)
    u, values, v = torch.linalg.svd(left_KR @ right_KR.T, full_matrices=False)
    return left_OK @ u, values, v @ right_IK.T
