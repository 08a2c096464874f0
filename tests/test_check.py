"""The course's target, and scripts/check.py."""

import pytest

from jaxmnist import ConfigError
from jaxmnist.analysis.verdict import Target, check_target, is_steady, judge
from tests.test_results import write_seven

CURVE = [99.0, 99.45, 99.39, 99.40, 99.41, 99.40, 99.42]


def test_all_of_the_last_epochs_must_reach_it():
    assert is_steady(CURVE, 99.4, 4)
    assert not is_steady(CURVE, 99.4, 5)
    assert is_steady(CURVE, 99.39, 6)
    with pytest.raises(ConfigError, match="last is 8, but there are only 7 epochs"):
        is_steady(CURVE, 99.4, 8)


def test_a_network_is_judged_seed_by_seed():
    """4 of 10: Wilson's 95 % interval is 16.8 to 68.7 %."""
    curves = [[99.4] * 15] * 4 + [[99.4] * 14 + [99.39]] * 6
    verdict = judge(Target(), 7364, curves)
    assert str(verdict) == "4 of 10, 95 % interval 17 to 69 %"
    assert judge(Target(), 8001, curves).met == 0
    assert judge(Target(), 8000, curves).met == 4
    assert judge(Target(epochs=14), 7364, curves).met == 0
    assert str(judge(Target(), 7364, curves[:1])) == "met"
    assert str(judge(Target(), 7364, curves[-1:])) == "not met"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(parameters=0), "parameters is 0; expected a whole number of at least 1"),
        (Target(last=0), "last is 0"),
        (Target(epochs=-1), "epochs is -1"),
        (Target(accuracy=101.0), "accuracy is 101.0; expected percent"),
        (Target(accuracy=float("nan")), "accuracy is nan; expected percent"),
    ],
)
def test_an_impossible_target_is_refused(target, message):
    with pytest.raises(ConfigError, match=message):
        check_target(target)


def test_a_pretrained_network_and_the_exit_status(command):
    words = ("check", "gap", "--last", "2", "--accuracy")
    status, out, err = command(*words, "90")
    assert (status, err) == (0, "")
    assert "gap: 7,364 parameters" in out
    assert out.endswith("gap: met\n")
    status, out, _ = command(*words, "99.99")
    assert status == 1
    assert out.endswith("gap: not met\n")
    status, _, err = command("check", "gap", "--last", "16")
    assert (status, err) == (
        2,
        "error: last is 16, but there are only 15 epochs; expected at most as many\n",
    )


def test_every_network_of_a_file(command, tmp_path):
    write_seven(tmp_path / "results.json")
    words = ("check", tmp_path / "results.json", "--last", "1", "--accuracy", "98.55")
    status, out, _ = command(*words)
    assert status == 1
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines()]
    assert ["gap", "7,364", "2 of 2, 95 % interval 34 to 100 %"] in rows
    assert ["augmentation", "7,364", "1 of 2, 95 % interval 9 to 91 %"] in rows
