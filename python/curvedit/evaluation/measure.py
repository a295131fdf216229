"""What a measure is: the metrics it owns, what they mean, and how it measures a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy.typing as npt
from torch import Tensor, nn

from curvedit.evaluation.bootstrap import ratio
from curvedit.report import Meaning, Metric, Reference, Report, register, require_same_data


@dataclass
class Run:
    """One evaluation under way: its settings, what its measures share, and the data they read."""

    measures: tuple["Measure", ...]
    baseline: Report | None  # of the unedited model; None while that is being measured
    batch_size: int  # passages or windows
    pad_token_id: int
    resamples: int  # bootstrap samples
    seed: int  # of the bootstrap
    hashes: dict[str, str] = field(default_factory=dict)  # SHA-256 of the data by name
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    reference: Reference | None = None  # of nDCG@10, to be saved with the report
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the data, where known
    shows_progress: bool = False
    decode: Callable[[Sequence[int]], str] | None = None  # token ids to text, for the report
    rows: dict[str, dict[str, list[Any]]] = field(default_factory=dict)  # by data, then column
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False)

    def identify(
        self,
        name: str,
        sha256: str,
        counts: Mapping[str, int],
        source: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the data that a measure reads, and refuse other data than the baseline's.

        Args:
            name: Key of the report's ``hashes`` and ``data``.
            sha256: Hash of the data.
            counts: Sizes by unit, the unit of the bootstrap first, as in
                ``{"windows": 5, "tokens": 90}``.
            source: Where the data come from and how they were read, for the report's recipe.

        Raises:
            ValueError: the baseline was measured on other data, or the suite has two sets of data
                of this name.
        """
        if name in self.hashes:
            raise ValueError(
                f"measures: expected one set of data named {name!r}, got two; give the measures "
                "the same object, or the second one a name of its own"
            )
        if self.baseline is not None:
            require_same_data(self.baseline.hashes, {name: sha256})
        self.hashes[name], self.counts[name] = sha256, dict(counts)
        if source:
            self.sources[name] = dict(source)

    def tell(self, name: str, column: str, values: Sequence[Any]) -> None:
        """Say something of every unit of the data called ``name``, for the report's details."""
        self.rows.setdefault(name, {})[column] = list(values)

    def interval(
        self,
        numerator: npt.ArrayLike,  # (n,)
        denominator: npt.ArrayLike | None = None,  # (n,) positive; None for ones
    ) -> Metric:
        """``sum(numerator) / sum(denominator)`` with its bootstrap interval over the n units."""
        return ratio(numerator, denominator, resamples=self.resamples, seed=self.seed)

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of ``make``, made once per run and key, for measures that share a pass."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Measure(ABC):
    """One thing to measure of a model. A new measure is a subclass in a file of its own.

    ``meanings`` holds the metrics the measure owns, by key, and registers them with the report
    when the class is defined. A key ``"FAMILY: {}"`` stands for one metric per name, such as
    ``"accuracy: {}"`` for one per split; such a measure overrides :attr:`keys`.

    Example:
        >>> import torch
        >>> from curvedit import Suite, evaluate
        >>> class Zeros(Measure):
        ...     meanings = {"zeros": Meaning("Zero weights", "share", "", "weights equal to 0")}
        ...
        ...     def measure(self, model, run):
        ...         weights = torch.cat([each.flatten() for each in model.parameters()])
        ...         return {"zeros": run.interval(weights == 0)}
        >>> model = torch.nn.Linear(4, 2)
        >>> _ = torch.nn.init.zeros_(model.bias)
        >>> round(evaluate(model, Suite([Zeros()])).before["zeros"].value, 3)
        0.2
    """

    meanings: ClassVar[Mapping[str, Meaning]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        owner = f"{cls.__module__}.{cls.__qualname__}"
        register(cls.__dict__.get("meanings", {}), owner=owner)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the metrics that :meth:`measure` returns."""
        return tuple(self.meanings)

    def probe(self, model: nn.Module, run: Run) -> Tensor | None:  # noqa: ARG002
        """Token ids (T,) or (B, T) on which the model must be causal; None if it need not be.

        Called for every measure before anything is measured, so that data which do not fit the
        model are refused here. The first ids decide for all measures: the check is made once.
        """
        return None

    @abstractmethod
    def measure(self, model: nn.Module, run: Run) -> Mapping[str, Metric]:
        """Measure a model.

        Args:
            model: In evaluation mode, with gradients off.
            run: Settings and baseline. Call :meth:`Run.identify` once the hash of the data is
                known, and before anything is computed from them that takes long.

        Returns:
            One metric for each of :attr:`keys`.
        """
