"""The diffusion mathematics on an exact Gaussian: no network, no sampling error, float64.

Every sampler is linear in its start and its noise when the prediction of v is that of a Gaussian. So a tensor can
hold the coefficients of (start, noise 0, noise 1, ...) instead of values, and the law of the result is exact: its
standard deviation is the norm of the coefficients.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from models.diffusion import (
    NOISE_SCHEDULES,
    SAMPLERS,
    adams,
    alpha_bar_of,
    ancestral,
    angle_of,
    diffuse,
    dpm2m,
    draw_endpoint,
    evenly_spaced,
    half_log_snr,
    noise_to_velocity,
    posterior,
    velocity,
    velocity_to_clean,
)

N = 50
SPREADS = 0.7, 0.3, 0.1
POSITIONS = {ancestral: lambda schedule: torch.arange(len(schedule)), dpm2m: half_log_snr,
             adams: lambda schedule: -angle_of(schedule) ** (2 / 3)}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
every_schedule = pytest.mark.parametrize("name", NOISE_SCHEDULES)


def make_schedule(name="quadratic", steps=N, first=1e-4, last=0.5):
    """What is left of the clean variance at each step."""
    return alpha_bar_of(NOISE_SCHEDULES[name](steps, first, last))


QUADRATIC = make_schedule()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_predictor(schedule, mean, std, visited=None):
    """The best prediction of v, by E[noise | noisy], when the clean value is N(mean, std^2)."""
    def predict(noisy, step):
        if visited is not None:
            visited.append(step)
        alpha_bar = schedule[step]
        variance = alpha_bar * std**2 + 1 - alpha_bar
        noise = (1 - alpha_bar).sqrt() * (noisy - alpha_bar.sqrt() * mean) / variance
        return noise_to_velocity(noisy, noise, alpha_bar)
    return predict


def coefficients(sampler, schedule, steps, std):
    """What the result is made of, for a clean value N(0, std^2): shares of the start and of each noise."""
    unit = torch.eye(steps + 1, dtype=torch.float64)
    return sampler(exact_predictor(schedule, 0, std), unit[0], schedule, steps, lambda index: unit[1 + index])


def std_ratio(sampler, steps, std, schedule=QUADRATIC):
    return float(coefficients(sampler, schedule, steps, std).norm()) / std


def mean_of_result(sampler, schedule, steps, mean, std):
    zero = torch.zeros((), dtype=torch.float64)
    return float(sampler(exact_predictor(schedule, mean, std), zero, schedule, steps, lambda noise_index: zero))


# Noise schedules

@every_schedule
def test_alpha_bar_is_the_falling_float64_product_of_one_minus_beta(name):
    beta, schedule = NOISE_SCHEDULES[name](N), make_schedule(name)
    assert len(schedule) == N and {beta.dtype, schedule.dtype} == {torch.float64}
    products = list(itertools.accumulate((1 - each for each in beta.tolist()), lambda a, b: a * b))
    assert schedule.tolist() == pytest.approx(products, rel=1e-13)
    assert (schedule.diff() < 0).all() and 0 < schedule[-1] < schedule[0] < 1


def test_quadratic_and_linear_schedules_run_from_one_ten_thousandth_to_one_half():
    for name in ("quadratic", "linear"):
        beta = NOISE_SCHEDULES[name](N)
        assert (float(beta[0]), float(beta[-1])) == pytest.approx((1e-4, 0.5), rel=1e-12)
    root = NOISE_SCHEDULES["quadratic"](N).sqrt().diff()
    assert root.tolist() == pytest.approx([(0.5**0.5 - 0.01) / (N - 1)] * (N - 1), rel=1e-9)
    assert NOISE_SCHEDULES["linear"](N).diff().tolist() == pytest.approx([(0.5 - 1e-4) / (N - 1)] * (N - 1), rel=1e-9)


@pytest.mark.parametrize("name, left", [("quadratic", 0.005791), ("linear", 0.000456)])
def test_share_of_the_residual_left_at_the_last_step_is_as_documented(name, left):
    """sqrt(alpha_bar[N-1]) is not zero: sampling starts from N(0, 1) where the process has mean left * residual."""
    assert math.sqrt(make_schedule(name)[-1]) == pytest.approx(left, rel=1e-3)


# Forward process

@every_schedule
def test_diffuse_has_the_mean_and_variance_of_the_paper_at_every_step(name):
    schedule, residual, endpoint = make_schedule(name), normal(1, 3, 4), normal(1, 3, 4, seed=1)
    for step, alpha_bar in enumerate(schedule.tolist()):
        level = schedule[step:step + 1]
        mean = diffuse(residual, endpoint, torch.zeros_like(residual), level)
        paper = math.sqrt(alpha_bar) * residual + (1 - math.sqrt(alpha_bar)) * endpoint
        torch.testing.assert_close(mean, paper, rtol=0, atol=1e-12)
        spread = diffuse(residual, endpoint, torch.ones_like(residual), level) - mean
        torch.testing.assert_close(spread**2, torch.full_like(spread, 1 - alpha_bar), rtol=0, atol=1e-12)


@every_schedule
def test_chained_one_step_transitions_equal_the_closed_form(name):
    """Coefficients of (residual, endpoint, noise of step 0, 1, ...), carried from step to step."""
    betas, unit = NOISE_SCHEDULES[name](N).tolist(), torch.eye(2 + N, dtype=torch.float64)
    value = unit[0]
    for step in range(N):
        value = diffuse(value, unit[1], unit[2 + step], torch.tensor(1 - betas[step], dtype=torch.float64))
        root = math.sqrt(math.prod(1 - beta for beta in betas[:step + 1]))
        assert value[:2].tolist() == pytest.approx([root, 1 - root], abs=1e-12)
        assert float(value[2:].norm()) == pytest.approx(math.sqrt(1 - root**2), abs=1e-12)


def test_each_entry_of_a_batch_has_its_own_noise_level():
    residual, endpoint, noise = (normal(5, 2, 3, seed=seed) for seed in range(3))
    step = torch.tensor([0, 7, 30, 30, 49])
    for function, parts in ((diffuse, (residual, endpoint, noise)), (velocity, (residual, noise))):
        together = function(*parts, QUADRATIC[step])
        for row in range(5):
            alone = function(*(part[row] for part in parts), QUADRATIC[step[row]])
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-12)


def test_float32_tensors_stay_float32_at_a_float64_noise_level():
    values, level = normal(2, 3, 4).float(), QUADRATIC[[3, 40]]
    for result in (diffuse(values, values, values, level), velocity(values, values, level),
                   velocity_to_clean(values, values, level[0]), noise_to_velocity(values, values, level[0]),
                   posterior(values, values, level[1], level[0])[0]):
        assert result.dtype == torch.float32
    for sampler in SAMPLERS.values():
        predict = exact_predictor(QUADRATIC, 0.3, 0.7)
        assert sampler(predict, values, QUADRATIC, 4, lambda noise_index: values).dtype == torch.float32


def test_endpoint_has_the_scale_of_its_node_and_balanced_independent_signs():
    scale, noise = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64), normal(200, 100, 3)
    kept = scale.clone(), noise.clone()
    endpoint = draw_endpoint(scale, noise)
    assert torch.equal(endpoint.abs(), scale.expand(200, 100, 3))
    assert torch.equal(scale, kept[0]) and torch.equal(noise, kept[1])
    sign = endpoint[..., [0, 2]].sign()
    bound = 5 / math.sqrt(200 * 100)
    assert (sign.mean((0, 1)).abs() < bound).all()
    assert abs((sign[..., 0] * sign[..., 1]).mean()) < bound, "nodes share their signs"
    assert abs((sign[:, 1:] * sign[:, :-1]).mean()) < bound, "horizon steps share their signs"
    assert abs((sign[1:] * sign[:-1]).mean()) < bound, "batch entries share their signs"
    assert abs((sign * noise[..., [0, 2]].abs()).mean() / noise.abs().mean()) < bound
    assert draw_endpoint(scale, noise.float()).dtype == torch.float32


# Reverse process

@pytest.mark.parametrize("here, there", [(49, 48), (49, 20), (25, 24), (10, 3), (1, 0), (12, None)])
def test_posterior_is_gaussian_conditioning_done_by_brute_force(here, there):
    """Bayes on a grid: p(value there | noisy here, clean), its mean and variance by summation."""
    level = QUADRATIC[here]
    next_level = torch.ones_like(level) if there is None else QUADRATIC[there]
    clean = -0.6
    noisy = math.sqrt(level) * clean + 1.7 * math.sqrt(1 - level)
    mean, variance = posterior(torch.tensor([noisy], dtype=torch.float64), torch.tensor([clean], dtype=torch.float64),
                               level, next_level)
    if there is None:
        assert (float(mean), float(variance)) == (pytest.approx(clean, abs=1e-12), 0)
        return
    a, b = float(level), float(next_level)
    width = math.sqrt(1 - b)
    grid = torch.linspace(math.sqrt(b) * clean - 12 * width, math.sqrt(b) * clean + 12 * width, 40001,
                          dtype=torch.float64)
    log_prior = -((grid - math.sqrt(b) * clean) ** 2) / (2 * (1 - b))
    log_likelihood = -((noisy - math.sqrt(a / b) * grid) ** 2) / (2 * (1 - a / b))
    weight = torch.softmax(log_prior + log_likelihood, 0)
    wanted = float((weight * grid).sum())
    assert float(mean) == pytest.approx(wanted, abs=1e-9)
    assert float(variance) == pytest.approx(float((weight * (grid - wanted) ** 2).sum()), abs=1e-9)


@every_schedule
def test_ancestral_sampling_takes_the_papers_reverse_step(name):
    """CoST Eq. 14 in the residual, r = shifted + endpoint, for any noise prediction: to 1e-10 at every step."""
    schedule, start, endpoint = make_schedule(name), normal(2, 3, 4), normal(2, 3, 4, seed=1)
    noises = normal(N, 2, 3, 4, seed=2)
    path = []

    def predict(shifted, step):
        path.append(shifted + endpoint)
        return noise_to_velocity(shifted, torch.sin(3 * shifted) + 0.1 * step, schedule[step])

    path.append(ancestral(predict, start, schedule, N, lambda noise_index: noises[noise_index]) + endpoint)
    assert len(path) == N + 1
    for number, step in enumerate(range(N - 1, -1, -1)):
        noisy, beta = path[number], float(NOISE_SCHEDULES[name](N)[step])
        alpha_bar = float(schedule[step])
        noise = torch.sin(3 * (noisy - endpoint)) + 0.1 * step
        printed = (noisy - beta / math.sqrt(1 - alpha_bar) * noise) / math.sqrt(1 - beta) \
            + (1 - 1 / math.sqrt(1 - beta)) * endpoint
        if step:
            variance = (1 - float(schedule[step - 1])) / (1 - alpha_bar) * beta
            printed = printed + math.sqrt(variance) * noises[number]
        torch.testing.assert_close(path[number + 1], printed, rtol=0, atol=1e-10)


# Steps

@pytest.mark.parametrize("positions", POSITIONS.values())
@every_schedule
def test_any_number_of_steps_is_distinct_and_descends_from_the_last_to_the_first(name, positions):
    schedule = make_schedule(name)
    for steps in range(1, N + 1):
        path = evenly_spaced(positions(schedule), steps)
        assert len(path) == steps and path[0] == N - 1
        assert all(here > there for here, there in itertools.pairwise(path))
        assert steps == 1 or path[-1] == 0
    assert evenly_spaced(positions(schedule), N) == list(range(N - 1, -1, -1))


def test_steps_are_evenly_spaced_in_their_number_or_in_log_signal_to_noise():
    for steps in range(2, N + 1):
        gaps = [here - there for here, there in itertools.pairwise(evenly_spaced(torch.arange(N), steps))]
        assert max(gaps) - min(gaps) <= 1
    assert evenly_spaced(torch.arange(N), 10) == [49, 44, 38, 33, 27, 22, 16, 11, 5, 0]
    log_snr = (QUADRATIC / (1 - QUADRATIC)).log() / 2
    path, by_number = log_snr[evenly_spaced(log_snr, 10)], log_snr[evenly_spaced(torch.arange(N), 10)]
    even = (log_snr[0] - log_snr[-1]) / 9
    coarsest = log_snr.diff().abs()[1:].max()
    assert ((path.diff() - even).abs() <= coarsest).all()
    assert path.diff().max() / path.diff().min() < 2 < by_number.diff().max() / by_number.diff().min()


@every_sampler
@pytest.mark.parametrize("steps", [0, -1, N + 1])
def test_a_number_of_steps_that_the_schedule_has_not_is_refused_with_the_range(sampler, steps):
    with pytest.raises(ValueError, match=f"--sample_steps {steps}: choose 1 to {N}"):
        sampler(exact_predictor(QUADRATIC, 0, 1), normal(2), QUADRATIC, steps, lambda noise_index: normal(2))


@every_sampler
def test_a_sampler_calls_the_network_once_per_step_and_draws_between_steps_only(sampler):
    for steps in (1, 2, 7, N):
        visited, drawn, start = [], [], normal(3)
        kept = start.clone()

        def noise(noise_index, drawn=drawn):
            drawn.append(noise_index)
            return normal(3, seed=noise_index)

        sampler(exact_predictor(QUADRATIC, 0.5, 0.7, visited), start, QUADRATIC, steps, noise)
        if sampler in POSITIONS:  # others may call it more than once, and draw as often as they like
            assert visited == evenly_spaced(POSITIONS[sampler](QUADRATIC), steps)
            assert len(drawn) == (steps - 1 if sampler is ancestral else 0)
        assert set(visited) <= set(range(N)) and drawn == list(range(len(drawn))) and len(drawn) < steps
        assert torch.equal(start, kept)


@pytest.mark.parametrize("sampler", [ancestral, dpm2m])
@every_schedule
def test_samplers_that_end_at_the_clean_value_reach_it_in_any_number_of_steps(sampler, name):
    """A residual without spread: whatever the start, the draws and the number of steps, it is found."""
    schedule, start, clean = make_schedule(name), normal(3), torch.tensor([-2.0, 0.3, 5.0], dtype=torch.float64)
    for steps in range(1, N + 1):
        result = sampler(exact_predictor(schedule, clean, 0), start, schedule, steps, lambda k: normal(3, seed=k))
        torch.testing.assert_close(result, clean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", [ancestral, dpm2m])
def test_a_process_of_a_single_step_is_sampled_in_one_call(sampler):
    schedule = make_schedule("linear", 1, 0.5, 0.5)
    gain = math.sqrt(0.5) * 0.49 / (0.5 * 0.49 + 0.5)
    assert coefficients(sampler, schedule, 1, 0.7).tolist() == pytest.approx([gain, 0], abs=1e-12)


# Exact laws of the samplers

@every_schedule
def test_adams_keeps_white_data_as_they_are_in_any_number_of_steps(name):
    """For a clean value N(0, 1) v is 0 everywhere: the result is the start, where other rules change its spread."""
    schedule, start = make_schedule(name), normal(4)
    for steps in range(1, N + 1):
        result = adams(exact_predictor(schedule, 0, 1), start, schedule, steps)
        torch.testing.assert_close(result, start, rtol=0, atol=1e-11)
    assert std_ratio(dpm2m, 10, 1.0) == pytest.approx(1.044, abs=6e-4)


@every_schedule
@pytest.mark.parametrize("std", SPREADS)
def test_adams_integrates_v_along_the_angle(name, std):
    """x = cos(angle) clean + sin(angle) noise has the derivative v = cos(angle) noise - sin(angle) clean. The rule is
    the integral of the line through this and the last v."""
    schedule, mean = make_schedule(name), -0.4
    for steps in (1, 2, 3, 10, N):
        visited, value, points = [], 0.9, []
        result = adams(exact_predictor(schedule, mean, std, visited), torch.tensor(value, dtype=torch.float64),
                       schedule, steps)
        angles = [math.acos(math.sqrt(level)) for level in schedule[visited].tolist()] + [0.0]
        for here, there in itertools.pairwise(angles):
            noise = math.sin(here) * (value - math.cos(here) * mean) / (
                math.cos(here)**2 * std**2 + math.sin(here)**2)
            clean = (value - math.sin(here) * noise) / math.cos(here)
            points.append((here, math.cos(here) * noise - math.sin(here) * clean))
            line = np.polynomial.Polynomial.fit(*zip(*points[-2:], strict=True), min(1, len(points) - 1)).integ()
            value += line(there) - line(here)
        assert float(result) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("std", SPREADS)
def test_ancestral_variance_of_a_gaussian_follows_from_regression_and_precisions(std):
    """Step by step: slope of the value there on the value here, and the spread left when clean and here are known."""
    for steps in (1, 2, 5, 10, 23, N):
        alpha_bars = QUADRATIC[evenly_spaced(torch.arange(N), steps)].tolist()
        variance = 1.0
        for here, there in itertools.pairwise(alpha_bars):
            ratio = here / there
            slope = math.sqrt(ratio) * (there * std**2 + 1 - there) / (here * std**2 + 1 - here)
            variance = slope**2 * variance + 1 / (1 / (1 - there) + ratio / (1 - ratio))
        slope = math.sqrt(alpha_bars[-1]) * std**2 / (alpha_bars[-1] * std**2 + 1 - alpha_bars[-1])
        assert float(coefficients(ancestral, QUADRATIC, steps, std).norm()) == pytest.approx(
            abs(slope) * math.sqrt(variance), rel=1e-10)


@every_schedule
@pytest.mark.parametrize("std", SPREADS)
def test_dpm2m_follows_the_published_second_order_rule(name, std):
    """Lu et al. 2022, Algorithm 2 in their own symbols: r = h_previous / h, D = (1 + 1/2r) x_s - 1/2r x_t."""
    schedule, mean = make_schedule(name), -0.4
    for steps in (1, 2, 3, 5, 10, 20, N):
        visited, value = [], 0.9
        result = dpm2m(exact_predictor(schedule, mean, std, visited), torch.tensor(value, dtype=torch.float64),
                       schedule, steps)
        alpha_bars = schedule[visited].tolist()
        clean, h_previous = [], None
        for index, level in enumerate(alpha_bars):
            alpha, sigma = math.sqrt(level), math.sqrt(1 - level)
            clean.append(mean + alpha * std**2 / (level * std**2 + sigma**2) * (value - alpha * mean))
            if index == steps - 1:
                break
            alpha_next, sigma_next = math.sqrt(alpha_bars[index + 1]), math.sqrt(1 - alpha_bars[index + 1])
            h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
            data = clean[-1]
            if index:
                r = h_previous / h
                data = (1 + 1 / (2 * r)) * clean[-1] - 1 / (2 * r) * clean[-2]
            value = sigma_next / sigma * value - alpha_next * (math.exp(-h) - 1) * data
            h_previous = h
        assert float(result) == pytest.approx(clean[-1], abs=1e-10)


@pytest.mark.parametrize("sampler", [ancestral, dpm2m])
@pytest.mark.parametrize("name, left", [("quadratic", 0.005791), ("linear", 0.000456)])
def test_bias_of_the_mean_is_what_the_last_step_still_holds_of_it(sampler, name, left):
    """The start N(0, 1) misses the mean sqrt(alpha_bar[N-1]) * mean of the process; the samplers carry this
    error through, at most unamplified: the forecast mean is biased by less than 0.6 % of the residual's mean."""
    schedule, mean = make_schedule(name), 2.0
    for std, steps in itertools.product(SPREADS, (1, 10, 20, N)):
        error = mean_of_result(sampler, schedule, steps, mean, std) - mean
        share_of_start = float(coefficients(sampler, schedule, steps, std)[0])
        assert error == pytest.approx(-share_of_start * math.sqrt(schedule[-1]) * mean, abs=1e-11)
        assert abs(error) <= left * mean
    if sampler is dpm2m:  # noise on the way makes it smaller
        assert mean_of_result(sampler, schedule, N, mean, 0.7) - mean == pytest.approx(-left * 0.7 * mean, rel=0.06)


@every_schedule
@pytest.mark.parametrize("std", SPREADS)
def test_adams_misses_the_mean_by_a_hundredth_in_ten_steps_and_less_in_more(name, std):
    schedule = make_schedule(name)
    errors = [abs(mean_of_result(adams, schedule, steps, 1.0, std) - 1) for steps in (10, 20, N)]
    assert errors[0] < 0.015 and max(errors[1:]) < 0.005


@pytest.mark.parametrize("sampler, steps, ratios, within", [
    (dpm2m, 10, (1.046, 1.045, 1.002), 0.05), (dpm2m, 20, (1.008, 1.008, 1.019), 0.03),
    (dpm2m, 50, (1.004, 1.013, 1.034), 0.04), (adams, 10, (0.995, 0.960, 0.831), 0.17),
    (adams, 20, (0.999, 0.989, 0.953), 0.05), (adams, 50, (0.999, 0.995, 0.980), 0.02),
    (ancestral, 10, (0.737, 0.664, 0.534), None), (ancestral, 50, (0.935, 0.905, 0.834), None),
])
def test_spread_with_a_perfect_predictor_is_as_documented(sampler, steps, ratios, within):
    """Sampled over true standard deviation, true ones 0.7, 0.3, 0.1, quadratic schedule of 50 steps: any number
    of ancestral steps is too narrow, dpm2m is right to a few per cent, adams the closer the more spread there is."""
    found = [std_ratio(sampler, steps, std) for std in SPREADS]
    assert found == pytest.approx(ratios, abs=6e-4)
    if within:
        assert found == pytest.approx([1, 1, 1], abs=within)


@pytest.mark.parametrize("sampler, ratios", [
    (dpm2m, (1.019, 1.128, 1.137)), (adams, (1.000, 0.983, 0.844)), (ancestral, (0.791, 0.672, 0.369)),
])
def test_spread_on_the_papers_linear_schedule_is_worse_with_every_sampler(sampler, ratios):
    """20 steps. The linear schedule has few steps where little noise is left: small residuals are resolved badly."""
    linear = make_schedule("linear")
    assert [std_ratio(sampler, 20, std, linear) for std in SPREADS] == pytest.approx(ratios, abs=6e-4)
    for std in SPREADS[1:]:
        assert abs(std_ratio(sampler, 20, std) - 1) < abs(std_ratio(sampler, 20, std, linear) - 1)


def test_adams_keeps_a_spread_near_1_best_and_dpm2m_a_small_one():
    for std, best in ((0.7, adams), (1.0, adams), (1.5, adams), (0.1, dpm2m)):
        assert min(SAMPLERS.values(), key=lambda sampler: abs(std_ratio(sampler, 10, std) - 1)) is best


def test_the_ancestral_sampler_becomes_exact_as_the_process_becomes_finer():
    """Four times the steps, a quarter of the variance each: a quarter of the error of the spread."""
    errors = [
        1 - std_ratio(ancestral, steps, 0.7, make_schedule("linear", steps, 0.1 / steps, 20 / steps))
        for steps in (60, 240, 960)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.2 < coarse / fine < 5.2
    assert 0 < errors[-1] < 0.01


@pytest.mark.parametrize("sampler", [dpm2m, adams])
def test_multistep_rules_are_of_second_order_in_the_number_of_their_steps(sampler):
    fine = make_schedule("linear", 4000, 1e-7, 0.005)
    errors = [abs(std_ratio(sampler, steps, 0.7, fine) - 1) for steps in (20, 40, 80)]
    assert all(3 < coarse / fine < 6 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 2e-3


@every_sampler
def test_a_thousand_small_steps_give_the_exact_gaussian(sampler):
    schedule = make_schedule("linear", 1000, 1e-5, 0.02)
    assert std_ratio(sampler, 1000, 0.7, schedule) == pytest.approx(1, abs=0.007)
    assert mean_of_result(sampler, schedule, 1000, 1.0, 0.7) == pytest.approx(1, abs=0.007)


# Velocity

@every_schedule
def test_the_velocity_is_that_of_salimans_and_ho_follows_from_the_noise_and_gives_back_the_clean_value(name):
    """v = alpha * noise - sigma * clean (arXiv:2202.00512, appendix D), of which clean = alpha * noisy - sigma * v."""
    schedule = make_schedule(name)
    clean, noise = normal(N, 3, 4), normal(N, 3, 4, seed=1)
    alpha, sigma = (values.sqrt().view(-1, 1, 1) for values in (schedule, 1 - schedule))
    noisy = diffuse(clean, torch.zeros(()), noise, schedule)
    found = velocity(clean, noise, schedule)
    torch.testing.assert_close(found, alpha * noise - sigma * clean, rtol=0, atol=1e-12)
    torch.testing.assert_close(alpha * noisy - sigma * found, clean, rtol=0, atol=1e-12)
    for step, level in enumerate(schedule):  # a scalar, as samplers have it
        torch.testing.assert_close(velocity_to_clean(noisy[step], found[step], level), clean[step], rtol=0, atol=1e-12)
        torch.testing.assert_close(noise_to_velocity(noisy[step], noise[step], level), found[step], rtol=0, atol=1e-11)


def test_a_velocity_of_zero_is_the_best_prediction_for_a_standard_normal_value():
    """E[noise | noisy] is then sigma * noisy."""
    predict, noisy = exact_predictor(QUADRATIC, 0.0, 1.0), normal(5, 3)
    for step in (0, 20, N - 1):
        torch.testing.assert_close(predict(noisy, step), torch.zeros_like(noisy), rtol=0, atol=1e-12)


def test_the_variance_of_the_velocity_is_one_at_every_level_where_that_of_the_clean_value_is():
    clean, noise = normal(N, 100_000), normal(N, 100_000, seed=1)
    variance = velocity(clean, noise, QUADRATIC).var(1)
    assert (variance - 1).abs().max() < 5 * (2 / 100_000) ** 0.5
