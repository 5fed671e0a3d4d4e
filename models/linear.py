"""DLinear: a linear map of the trend of the history and one of the remainder."""

from torch import Tensor, nn
from torch.nn import functional as F

from data.context import Context

from .layers import ExtraInputs, InitialForecast, Task
from .mean import MeanModel

WINDOW = 25  # steps of the moving average, at most


class DLinear(MeanModel):
    """Linear in trend (moving average) and remainder of the anomaly, the same maps for all nodes.

        change = trend_map(moving average of the anomaly) + remainder_map(anomaly - moving average)

    Source: Zeng et al. 2023 (arXiv:2205.13504); differs from the paper: inputs are departures from the climatology,
    outputs departures from an `InitialForecast`.
    """

    def __init__(self, task: Task, objective: str):
        super().__init__(objective)
        self.half = (min(WINDOW, task.history_len) - 1) // 2
        size = task.predict_len * self.outputs
        self.trend_map, self.remainder_map = nn.Linear(task.history_len, size), nn.Linear(task.history_len, size)
        self.extra = ExtraInputs(task, size)
        self.initial = InitialForecast(task)

    def predict(self, context: Context) -> Tensor:
        anomaly = context.anomaly.transpose(1, 2)
        padded = F.pad(anomaly, (self.half, self.half), mode="replicate")
        trend = F.avg_pool1d(padded, 2 * self.half + 1, stride=1)
        change = self.extra(self.trend_map(trend) + self.remainder_map(anomaly - trend), context.missing,
                            context.features)
        return self.by_output(change) + self.initial(context).unsqueeze(1)
