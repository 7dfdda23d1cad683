"""Count, mean and squared deviations of the inputs of a linear, merged batch by batch."""

# Shape suffixes:  S = sequences,  T = tokens,  N = tokens of all,  C = channels.

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviations of each channel, in float64.

    Merged pairwise after Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", COMPSTAT 1982, which is Welford's update for batches.
    """

    count: int
    mean_C: Tensor
    squares_C: Tensor

    @classmethod
    def of(cls, samples_NC: Tensor) -> "Moments":
        samples_NC = samples_NC.double()
        mean_C = samples_NC.mean(dim=0)
        squares_C = (samples_NC - mean_C).square().sum(dim=0)
        return cls(len(samples_NC), mean_C.cpu(), squares_C.cpu())

    @classmethod
    def updated(cls, before: "Moments | None", inputs_STC: Tensor) -> "Moments":
        """After some more sequences."""
        new = cls.of(inputs_STC.flatten(0, -2))
        return before.merge(new) if before else new

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of samples together."""
        count = self.count + other.count
        step_C = other.mean_C - self.mean_C
        weight = self.count * other.count / count
        return Moments(
            count,
            self.mean_C + step_C * (other.count / count),
            self.squares_C + other.squares_C + step_C.square() * weight,
        )

    @property
    def variance_C(self) -> Tensor:
        """Unbiased, as FLAP has it."""
        return self.squares_C / (self.count - 1)

    @property
    def mean_square_C(self) -> Tensor:
        """The mean of x², not of its deviation."""
        return self.squares_C / self.count + self.mean_C.square()
