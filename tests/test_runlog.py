"""What a run prints beside its scores."""

from utils.training.runlog import print_scores


def test_intervals_that_are_too_narrow_are_said_beside_the_scores(capsys):
    scores = {"split": "test", "windows": 5, "members": 50, "coverage90_floor": 0.88, "seconds_sample": 1.0}
    for coverage, said in ((0.60, True), (0.86, False), (0.99, False)):
        print_scores({**scores, "coverage90": coverage}, "m")
        note = "intervals hold 60% of the observations, those of a calibrated ensemble 88%"
        assert (note in capsys.readouterr().out) == said
