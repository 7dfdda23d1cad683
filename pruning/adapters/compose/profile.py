"""How an adapter's outputs vary along a text: what tells how long they may be held.

CMLoRA (Zou et al., "Cached Multi-Lora Composition for Multi-Concept Image Generation", ICLR 2025,
https://arxiv.org/abs/2502.04923) ranks adapters by the high frequencies of what they draw.  Along
the positions of a text the same spectrum says more: by Wiener and Khinchin it is that of the
autocorrelation, and so of the error of holding an output for some tokens.
"""

# Shape suffixes:  S = sequences,  T = tokens,  I = inputs of a linear,  R = atoms,  L = lags.

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.atoms import Key
from pruning.adapters.compose.sums import Exact, adapted

LAGS = 32
LOW = 0.2  # the share of frequencies that counts as low


@dataclass(frozen=True)
class Spread:
    """Of one linear's Δy: energies per token, and the autocorrelation of what varies."""

    constant: float  # ‖mean over the sequence‖²
    varying: float  # E ‖Δy − mean‖²
    correlation_L: Tensor  # at lags 0 … LAGS - 1, 1 at lag 0
    high: float  # share of all power in the upper 80 % of frequencies


Profile = Mapping[Key, Spread]


@torch.no_grad()
def profile(model: Any, bags: Bags, ids_ST: Tensor) -> Profile:
    """The profile of an adapter that runs alone on `model`, a base in memory, over some text.

    Raises ValueError for sequences of fewer than two tokens.
    """
    if ids_ST.shape[1] < 2:
        raise ValueError("a profile needs sequences of two tokens or more")
    inputs: dict[Key, Tensor] = {}
    with adapted(model, Exact([bags], [1.0]), inputs):
        model(ids_ST)
    return {key: _spread(bags[key], inputs[key]) for key in bags}


def write(found: Profile, path: Path) -> None:
    """Store a profile as JSON: what `summary` tells, and under "linears" each of them."""
    linears = {
        f"{layer}.{linear}": {
            "constant": spread.constant,
            "varying": spread.varying,
            "high": spread.high,
            "correlation": _rounded(spread.correlation_L),
        }
        for (layer, linear), spread in sorted(found.items())
    }
    path.write_text(json.dumps({**summary(found), "linears": linears}) + "\n", encoding="utf-8")


def read(path: Path) -> Profile:
    """A profile as `write` has stored it."""
    linears = json.loads(path.read_text(encoding="utf-8"))["linears"]
    return {
        (int(name.partition(".")[0]), name.partition(".")[2]): Spread(
            constant=own["constant"],
            varying=own["varying"],
            correlation_L=torch.tensor(own["correlation"]),
            high=own["high"],
        )
        for name, own in linears.items()
    }


def summary(found: Profile) -> dict[str, Any]:
    """The whole adapter: energies per token, the score `high`, and the correlation by lag.

    The correlation is that of all outputs together, so each linear counts by what varies in it.
    """
    varying = sum(spread.varying for spread in found.values())
    correlation_L = sum(
        (spread.varying * spread.correlation_L for spread in found.values()), torch.zeros(1)
    )
    return {
        "constant": sum(spread.constant for spread in found.values()),
        "varying": varying,
        "high": high(found),
        "correlation": _rounded(correlation_L / varying if varying else correlation_L),
    }


def _rounded(values_L: Tensor) -> list[float]:
    return [round(value, 6) for value in values_L.tolist()]


def high(found: Profile) -> float:
    """The paper's score of an adapter: the share of its power in high frequencies."""
    total = sum(spread.constant + spread.varying for spread in found.values())
    upper = sum((s.constant + s.varying) * s.high for s in found.values())
    return upper / total if total else 0.0


def _spread(bag: Bag, inputs_STI: Tensor) -> Spread:
    """Everything in the coordinates of B's range, where lengths are those of Δy."""
    left_RR = torch.linalg.qr(bag.b_OR.double(), mode="r").R
    moved_STR = inputs_STI.double() @ bag.a_RI.double().T @ left_RR.T
    mean_S1R = moved_STR.mean(dim=1, keepdim=True)
    varying_STR = moved_STR - mean_S1R
    length = moved_STR.shape[1]
    power = torch.fft.rfft(varying_STR, n=2 * length, dim=1).abs().square().sum(dim=(0, 2))
    summed_T = torch.fft.irfft(power, n=2 * length)[:length]
    counts_T = torch.arange(length, 0, -1, dtype=torch.float64) * len(moved_STR)
    covariance_L = (summed_T / counts_T)[:LAGS]
    spectrum = torch.fft.rfft(moved_STR, dim=1).abs().square().sum(dim=(0, 2))
    first = int(LOW * len(spectrum)) + 1
    energy = float(covariance_L[0])
    return Spread(
        constant=float(mean_S1R.square().sum(dim=2).mean()),
        varying=energy,
        correlation_L=(covariance_L / energy if energy else torch.zeros_like(covariance_L)).float(),
        high=float(spectrum[first:].sum() / spectrum.sum()) if spectrum.sum() else 0.0,
    )
