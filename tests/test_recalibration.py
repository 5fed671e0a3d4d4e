"""Recalibration: it finds how far off and how narrow forecasts were, and few data move it little."""

import pytest
import torch

from data.constants import QUANTILE_LEVELS
from data.context import Context
from data.windows import Batch
from models.layers import Task
from models.mean import CorrectedMean, MeanModel
from models.quantiles import pit_bounds, z_from_pit
from models.recalibration import BINS, OUTERMOST, WIDEST, Recalibration, spread_of

HORIZON, NODES = 3, 4
ALL = (torch.ones(1, 1, 1, dtype=torch.bool),)  # every z shows how wide quantiles are


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def calendar_of(windows, size=24):
    return torch.stack([torch.arange(windows) % size, torch.zeros(windows, dtype=torch.long)], dim=1)


def normal_quantiles(count):
    z = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS, dtype=torch.float64)).float()
    return z.view(1, -1, 1, 1).expand(count, -1, HORIZON, NODES)


def fitted(z, size=24, observed=None, for_width=ALL[0]):
    recalibration = Recalibration(NODES, HORIZON, size)
    counts = torch.ones_like(z) if observed is None else observed.to(z.dtype)
    recalibration.fit([(z, calendar_of(len(z), size), counts, for_width)], len(z))
    return recalibration


def test_before_it_is_fitted_it_changes_nothing():
    quantiles = torch.randn(30, len(QUANTILE_LEVELS), HORIZON, NODES).sort(1).values
    torch.testing.assert_close(Recalibration(NODES, HORIZON, 24)(quantiles, calendar_of(30)), quantiles,
                               rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [-0.7, -0.1, 0.0, 0.3, 1.0])
def test_shifting_the_levels_of_a_normal_law_moves_its_mean_by_as_many_standard_deviations(shift):
    recalibration = Recalibration(NODES, HORIZON, 24)
    recalibration.shift.fill_(shift)
    found = recalibration(2 + 3 * normal_quantiles(1), calendar_of(1))
    torch.testing.assert_close(found, 2 + 3 * shift + 3 * normal_quantiles(1), rtol=0, atol=1e-4)


def test_shifting_levels_keeps_their_order_in_each_window_alike():
    quantiles, calendar = torch.randn(30, len(QUANTILE_LEVELS), HORIZON, NODES).sort(1).values, calendar_of(30)
    recalibration = Recalibration(NODES, HORIZON, 24)
    torch.nn.init.normal_(recalibration.shift)
    found = recalibration(quantiles, calendar)
    assert (found.diff(dim=1) >= -1e-5).all()
    torch.testing.assert_close(found[2:3], recalibration(quantiles[2:3], calendar[2:3]))


def test_quantiles_that_are_too_low_are_lifted_to_where_they_are_right():
    offset = torch.tensor([0.5, -0.3, 0.0, 0.2]) + torch.tensor([[0.0], [0.1], [-0.1]])
    truth = torch.randn(9600, HORIZON, NODES) + offset
    z = z_from_pit(pit_bounds(normal_quantiles(9600), truth, float("-inf"), 0.0), torch.rand_like(truth))
    recalibration = Recalibration(NODES, HORIZON, 24)
    parts = [part.split(4000) for part in (z, calendar_of(9600), torch.ones_like(z))]
    recalibration.fit(zip(*parts, ALL * 3, strict=True), 9600)
    moved = recalibration(normal_quantiles(24), calendar_of(24))[:, 9]
    assert (moved - offset).abs().mean() < 0.05 and (moved - offset).abs().max() < 0.25


def test_each_time_of_the_cycle_has_a_shift_of_its_own():
    calendar = calendar_of(2400)
    late = calendar[:, 0] >= 12
    z = torch.where(late, 0.5, -0.5).view(-1, 1, 1).expand(-1, HORIZON, NODES)
    recalibration = Recalibration(NODES, HORIZON, 24)
    recalibration.fit([(z, calendar, torch.ones_like(z), *ALL)], len(z))
    shift = recalibration.shift[recalibration.bins(calendar)]
    assert (shift[late] > 0.3).all() and (shift[~late] < -0.3).all()


def test_the_more_cycles_the_larger_the_shrinkage_weight_and_a_time_never_seen_is_left_alone():
    shifts = []
    for days in (1, 5, 500):
        shifts.append(float(fitted(torch.full((24 * days, HORIZON, NODES), 0.4)).shift.mean()))
    assert 0 < shifts[0] < shifts[1] < shifts[2] < 0.4 and shifts[2] > 0.38
    recalibration = Recalibration(NODES, HORIZON, 24)
    recalibration.fit([(torch.ones(5, HORIZON, NODES), torch.zeros(5, 2, dtype=torch.long),
                        torch.ones(5, HORIZON, NODES), *ALL)], 5)
    assert (recalibration.shift[0] > 0).all() and (recalibration.shift[1:] == 0).all()


@pytest.mark.parametrize("size, bins", [(7, 7), (12, 12), (24, min(24, BINS)), (288, BINS)])
def test_a_cycle_is_split_into_even_times(size, bins):
    recalibration = Recalibration(NODES, HORIZON, size)
    found = recalibration.bins(calendar_of(size, size))
    assert len(recalibration.shift) == bins and found.unique().tolist() == list(range(bins))
    assert found.bincount().max() - found.bincount().min() <= 1 and (found.diff() >= 0).all()


def test_missing_values_count_in_no_shift_whatever_stands_there():
    z, observed = torch.randn(240, HORIZON, NODES), torch.rand(240, HORIZON, NODES) < 0.7
    one, other, reference = (Recalibration(NODES, HORIZON, 24) for _ in range(3))
    one.fit([(z, calendar_of(240), observed.float(), *ALL)], 240)
    other.fit([(torch.where(observed, z, 2.0), calendar_of(240), observed.float(), *ALL)], 240)
    assert torch.equal(one.shift, other.shift) and one.shift.abs().max() > 0.01
    kept = observed[:, 1, 2]
    reference.fit([(z[kept], calendar_of(240)[kept], torch.ones_like(z[kept]), *ALL)], 240)
    torch.testing.assert_close(one.shift[:, 1, 2], reference.shift[:, 1, 2])


def test_quantiles_that_are_too_narrow_are_widened_to_where_they_cover_what_they_should():
    truth = 0.4 + 1.3 * torch.randn(9600, HORIZON, NODES)
    z = z_from_pit(pit_bounds(normal_quantiles(9600), truth, float("-inf"), 0.0), torch.rand_like(truth))
    recalibration = fitted(z)
    moved = recalibration(normal_quantiles(9600), calendar_of(9600))
    covered = ((truth > moved[:, 0]) & (truth < moved[:, -1])).float().mean()
    assert recalibration.widening > 1.2 and abs(covered - 0.9) < 0.02
    torch.testing.assert_close(moved[:, 9], recalibration.shift[recalibration.bins(calendar_of(9600))])


def test_quantiles_are_never_narrowed():
    assert fitted(0.8 * torch.randn(2400, HORIZON, NODES)).widening == 1


@pytest.mark.parametrize("size, windows", [(24, 2400), (48, 280), (288, 400), (288, 100), (12, 330), (24, 3)])
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_quantiles_that_are_right_are_left_alone_however_much_neighbouring_windows_share(size, windows, shared):
    """Each z is standard normal; with `shared` those of windows that follow each other are alike."""
    found = []
    for _ in range(20):
        noise = torch.randn(windows, HORIZON, NODES)
        for window in range(1, windows if shared else 1):
            noise[window] = shared * noise[window - 1] + (1 - shared**2) ** 0.5 * noise[window]
        found.append(float(fitted(noise, size).widening))
    assert sum(found) / len(found) < 1.03


@pytest.mark.parametrize("size", [24, 288])
def test_widening_is_that_of_later_windows_around_the_shifts_of_earlier_ones(size):
    """All z of a day are alike: shifts follow the days they were fitted to, and miss later ones by more."""
    days, found, wanted = 20, [], []
    for _ in range(60):
        z = (1.2 * torch.randn(2 * days, 1, HORIZON, NODES)).expand(-1, size, -1, -1).flatten(0, 1)
        earlier, later = z.chunk(2)
        found.append(float(fitted(z, size).widening) ** ((days + 3) / days))
        recalibration = fitted(earlier, size)
        around = later - recalibration.shift[recalibration.bins(calendar_of(len(later), size))]
        wanted.append(float(around.std()))
    assert sum(found) == pytest.approx(sum(wanted), rel=0.01) and sum(found) > 60 * 1.2


def test_a_batch_that_holds_the_middle_is_split_there():
    z, whole = 1.3 * torch.randn(100, HORIZON, NODES), Recalibration(NODES, HORIZON, 24)
    parts = [(part, calendar, torch.ones_like(part), *ALL)
             for part, calendar in zip(z.split(33), calendar_of(100).split(33), strict=True)]
    whole.fit(parts, 100)
    torch.testing.assert_close(whole.widening, fitted(z).widening)
    torch.testing.assert_close(whole.shift, fitted(z).shift)


def test_the_more_cycles_the_larger_the_weight_of_a_widening():
    found = [float(fitted(1.25 * torch.randn(24 * days, HORIZON, NODES)).widening) for days in (4, 20, 200)]
    assert 1 < found[0] < found[1] < found[2] < 1.3


def test_times_that_the_calendar_never_has_take_nothing_from_the_shrinkage_weight():
    z = 1.3 * torch.randn(400, HORIZON, NODES)
    quarterly = Recalibration(NODES, HORIZON, 12)
    quarterly.fit([(z, calendar_of(400, 4) * 3, torch.ones_like(z), *ALL)], 400)
    assert quarterly.widening == pytest.approx(float(fitted(z, 4).widening), rel=1e-5)


def test_missing_values_widen_nothing_and_without_any_value_nothing_moves():
    z, observed = torch.randn(240, HORIZON, NODES), torch.rand(240, HORIZON, NODES) < 0.7
    widening = fitted(1.3 * z, observed=observed).widening
    assert widening == fitted(torch.where(observed, 1.3 * z, 2.5), observed=observed).widening > 1
    empty = fitted(z, observed=torch.zeros_like(observed))
    assert empty.widening == 1 and (empty.shift == 0).all()


def test_z_without_a_width_shift_levels_and_widen_nothing():
    z = torch.randn(2400, HORIZON, NODES)
    odd = torch.arange(NODES) % 2 == 1
    mixed = fitted(torch.where(odd, 0.5 + 2 * z, z), for_width=~odd.expand_as(z))
    assert mixed.widening == pytest.approx(1, abs=0.02) and (mixed.shift.mean((0, 1))[odd] > 0.3).all()


@pytest.mark.parametrize("rate, smooth", [(0.02, 0), (0.05, 0), (0.3, 0), (0.3, 1), (3.0, 1), (30.0, 0)])
def test_right_quantiles_of_counts_are_left_alone(rate, smooth):
    """Quantiles of whole numbers, and those between them that round to them."""
    truth = torch.poisson(torch.full((2400, HORIZON, NODES), rate))
    drawn = torch.poisson(torch.full((1_000_000,), rate)) + smooth * (torch.rand(1_000_000) - 0.5)
    quantiles = drawn.quantile(torch.tensor(QUANTILE_LEVELS)).view(1, -1, 1, 1).expand(2400, -1, HORIZON, NODES)
    model = CorrectedMean(TASK, [Fixed(quantiles)], recalibrate=True).eval()
    model.calibrate((), Windows(truth), (0.0, 1.0))
    assert model.recalibration.widening < 1.03


class Fixed(MeanModel):
    """A mean model whose outputs are these, (window, output, F, node), for the windows that its context names."""

    def __init__(self, outputs):
        super().__init__("quantiles" if outputs.shape[1] > 1 else "mse")
        self.fixed = outputs

    def predict(self, context):
        return self.fixed[context.history[:, 0, 0].long()]


class Windows(list):
    """Windows of an hourly field with these futures, in batches; the history of each holds its number."""

    def __init__(self, future, target_mask=None, size=1000):
        self.starts = torch.arange(len(future))
        everything = Context(self.starts.float().view(-1, 1, 1).expand(-1, 2, NODES), calendar_of(len(future)),
                             torch.zeros(len(future), 2 + HORIZON, NODES), target_mask=target_mask)
        super().__init__(Batch(Context(*(None if part is None else part[rows] for part in vars(everything).values())),
                               future[rows], rows) for rows in self.starts.split(size))


# A mean without quantiles

TASK = Task(NODES, 2, HORIZON, (24,))


def test_a_mean_that_is_off_is_moved_to_where_it_is_right_by_node_step_and_time():
    """400 days: the shift is shrunk by 400 / 403; nodes differ in their spread, which is no hindrance."""
    late = (calendar_of(9600)[:, 0] >= 12).view(-1, 1, 1)
    offset = torch.where(late, 0.4, -0.2) * torch.tensor([1.0, 0.5, 0.0, 1.0])
    spread = torch.tensor([1.0, 0.1, 2.0, 1.0])
    windows = Windows(5 + spread * (offset + torch.randn(9600, HORIZON, NODES)))
    model = CorrectedMean(TASK, [Fixed(torch.full((9600, 1, HORIZON, NODES), 5.0))], recalibrate=True).eval()
    model.calibrate((), windows, (float("-inf"), 0.0))
    assert all((model.uncalibrated(batch.context) == 5).all() for batch in windows)
    moved = torch.cat([model(batch.context) for batch in windows])
    assert ((moved - 5) / spread - offset).abs().mean() < 0.06
    wanted = spread * (1 + offset.square().mean((0, 1))).sqrt()
    torch.testing.assert_close(model.spread, wanted, rtol=0.03, atol=0)


def test_before_it_is_calibrated_a_mean_is_that_of_its_network_and_few_days_move_it_little():
    future = 1 + 0.1 * torch.randn(24, HORIZON, NODES)
    inner = Fixed(torch.zeros(24, 1, HORIZON, NODES))
    model, windows = CorrectedMean(TASK, [inner], recalibrate=True).eval(), Windows(future)
    assert (model(windows[0].context) == 0).all()
    model.calibrate((), windows, (float("-inf"), 0.0))
    torch.testing.assert_close(model(windows[0].context).mean(), future.mean() / 4, rtol=0.03, atol=0)  # 1 / (1 + 3)
    assert (inner(windows[0].context) == 0).all() and model.recalibration.widening == 1


def test_missing_values_move_no_mean_whatever_stands_there():
    future, observed = torch.randn(240, HORIZON, NODES), torch.rand(240, HORIZON, NODES) < 0.7
    observed[..., 3] = False
    found = []
    for value in (0.0, 1e6):
        model = CorrectedMean(TASK, [Fixed(torch.zeros(240, 1, HORIZON, NODES))], recalibrate=True).eval()
        model.calibrate((), Windows(future.where(observed, value), observed), (float("-inf"), 0.0))
        found.append(model.predict(Windows(future, observed)[0].context))
    assert torch.equal(*found) and found[0].abs().max() > 0.01 and (found[0][..., 3] == 0).all()


@pytest.mark.parametrize("spread", [1.0, 1.15, 2.0])
@pytest.mark.parametrize("outliers", [0.0, 1e4])
def test_a_spread_is_found_from_z_held_within_the_outermost_level(spread, outliers):
    z = spread * torch.randn(1_000_000)
    z += outliers * (z.abs() > OUTERMOST) * z.sign()  # how far out they lie changes nothing
    found = spread_of(z.clamp(-OUTERMOST, OUTERMOST).square().mean())
    assert found == pytest.approx(spread, abs=0.01)


def test_a_spread_has_bounds():
    assert spread_of(torch.tensor(0.0)) == 1 and spread_of(torch.tensor(1e9)) == WIDEST


def test_a_z_far_out_moves_the_levels_no_further_than_one_of_two_and_a_half():
    """One window in 10 days, at one node: 2.5 / 10, with the shrinkage weight 10 / 13 of 10 days."""
    def shift_of(value):
        z = torch.zeros(240, HORIZON, NODES)
        z[5, 1, 2] = value
        return fitted(z).shift

    far, near = shift_of(4.0), shift_of(2.5)
    torch.testing.assert_close(far, near)
    assert far[5, 1, 2] == pytest.approx(2.5 / 13) and int((far != 0).sum()) == 1
    torch.testing.assert_close(shift_of(-50.0), -near)
    assert shift_of(2.0)[5, 1, 2] == pytest.approx(2.0 / 13)
