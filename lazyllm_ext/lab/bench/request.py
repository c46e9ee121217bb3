"""What is to be measured, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from lazyllm_ext.schedule import PruningSchedule

DTYPES = ("float32", "bfloat16", "float16")
RANDOM = "random:"  # a model with random weights in a known shape: random:NAME


class BenchError(RuntimeError):
    """A measurement that would say nothing: a wrong result, or a process that failed."""


@dataclass(frozen=True)
class BenchRequest:
    """The measurement's options."""

    model: str  # folder of a transformers model, or `random:NAME` for a shape of `model.SHAPES`
    lengths: tuple[int, ...]  # prompt lengths in tokens, ascending
    new_tokens: int = 65  # tokens generated after each prompt, at least 2; the first ends TTFT
    rounds: tuple[int, ...] = (5,)  # rounds that count, one number for each length or one for all
    dtype: str = "float32"  # of weights and computation
    device: str = "cpu"  # `cpu`, `cuda` or `cuda:N`
    # What LazyLLM runs under; `dense` is always the first, since it tells what the kernels gain
    # from what pruning gains.
    schedules: tuple[str, ...] = ("dense", "paper", "balanced", "fast")
    compiled: bool = False  # measure transformers under torch.compile too
    # Measure the peak memory of a prefill, a process for each figure on the CPU.
    memory: bool = True

    def __post_init__(self) -> None:
        if (
            not self.lengths
            or min(self.lengths) < 16
            or list(self.lengths) != sorted(set(self.lengths))
        ):
            raise ValueError(
                "prompt lengths: expected ascending numbers of at least 16, "
                f"got {_listed(self.lengths)}"
            )
        if self.new_tokens < 2:
            raise ValueError(f"new tokens: expected at least 2, got {self.new_tokens}")
        if len(self.rounds) not in (1, len(self.lengths)) or min(self.rounds) < 1:
            raise ValueError(
                f"rounds: expected one number from 1 on, or one for each of {len(self.lengths)} "
                f"lengths, got {_listed(self.rounds)}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        others = [name for name in dict.fromkeys(self.schedules) if name != "dense"]
        for name in others:
            PruningSchedule.load(name)
        object.__setattr__(self, "schedules", ("dense", *others))

    @property
    def rounds_of_length(self) -> dict[int, int]:
        """The rounds of every length."""
        rounds = self.rounds if len(self.rounds) > 1 else self.rounds * len(self.lengths)
        return dict(zip(self.lengths, rounds, strict=True))

    @property
    def contenders(self) -> tuple[str, ...]:
        """Everything that is timed, in the order of its turns."""
        return ("transformers", *(("compiled",) if self.compiled else ()), *self.schedules)


def numbers(name: str, text: str, kind: str = "numbers") -> tuple[int, ...]:
    """'512,1024' -> (512, 1024).

    Raises:
        ValueError: anything but numbers between the commas.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name}: expected {kind} with commas between, got {text!r}") from None


def _listed(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values)) or "none"
