"""What a forecast may see of a window: one object for the data, both stages and every network."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """Inputs of a forecast, and which targets count. Units: standardized. None for what the field does not have."""

    history: Tensor  # (batch, H, node), the climatology where a value is missing
    calendar: Tensor  # (batch, cycle), slots of the last history step; those of the horizon follow, of weeks within one
    climatology: Tensor  # (batch, H + F, node), see `data.climatology`
    observed: Tensor | None = None  # (batch, H, node), which values of the history are not missing
    target_mask: Tensor | None = None  # (batch, F, node), which values of the future count in a loss; None: all
    covariates: Tensor | None = None  # (batch, H + F, node or 1, covariate), those of a file
    lags: Tensor | None = None  # (batch, H + F, node, lag), earlier values of the field

    @property
    def history_len(self) -> int:
        return self.history.shape[1]

    @property
    def latest(self) -> Tensor:
        """Step of the latest value of a history with gaps, or its last step if there is none: (batch, 1, node)."""
        steps = torch.arange(self.history_len, device=self.history.device).view(-1, 1)
        return torch.where(self.observed, steps, -1).amax(1, keepdim=True) % self.history_len

    def from_latest(self, values: Tensor) -> Tensor:
        """Values (batch, H + n, node, ...) at that step, then at those after the history: (batch, 1 + n, node, ...)."""
        if self.observed is None:
            return values[:, self.history_len - 1:]
        latest, trailing = self.latest, values.shape[3:]
        steps = latest.view(*latest.shape, *[1] * len(trailing)).expand(-1, -1, -1, *trailing)
        return torch.cat([values.gather(1, steps), values[:, self.history_len:]], dim=1)

    @property
    def now(self) -> Tensor:
        """The last value of the history; where it is missing, its climatology with the latest anomaly."""
        last = self.history[:, -1:]
        if self.observed is None:
            return last
        return torch.where(self.observed[:, -1:], last, last + self.from_latest(self.anomaly))

    @property
    def anomaly(self) -> Tensor:
        """The history as a departure from the climatology: (batch, H, node)."""
        return self.history - self.climatology[:, :self.history_len]

    @property
    def future_climatology(self) -> Tensor:
        """Climatology of the horizon: (batch, F, node)."""
        return self.climatology[:, self.history_len:]

    @property
    def missing(self) -> Tensor | None:
        """1 where a value of the history is missing, else 0: (batch, H, node); None for a field without gaps."""
        return None if self.observed is None else (~self.observed).to(self.history.dtype)

    @property
    def features(self) -> Tensor | None:
        """Covariates and lags together: (batch, H + F, node or 1, feature); None without any."""
        if self.lags is None or self.covariates is None:
            return self.lags if self.covariates is None else self.covariates
        return torch.cat([self.covariates.expand(*self.lags.shape[:3], -1), self.lags], dim=-1)

    @classmethod
    def join(cls, contexts: Sequence["Context"]) -> "Context":
        """The windows of several contexts as one."""
        parts = ([getattr(context, item.name) for context in contexts] for item in fields(cls))
        return cls(*(None if part[0] is None else torch.cat(part) for part in parts))
