"""Where the runs with faults are, and what runs without one come to."""

import drifting
import pytest

from faults import drills


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """The directory of the runs, with the policy that they start from."""
    directory = tmp_path_factory.mktemp("faults")
    with drills.known():
        drifting.prepare(directory)
        yield directory


@pytest.fixture(scope="package")
def alone(place):
    """The outcome of an undisturbed run of one process."""
    return undisturbed(place, "alone", 1)


@pytest.fixture(scope="package")
def pair(place):
    """The outcome of an undisturbed run of two processes."""
    return undisturbed(place, "pair", 2)


def undisturbed(place, name, size):
    ended = drills.forked(place, name, size=size)
    assert [one.code for one in ended] == [0] * size, ended[0].said[-3000:]
    outcome = drifting.outcome(place / name)
    assert all(row["train/windows"] for row in outcome["rows"]), "nothing was learned"
    return outcome


@pytest.fixture(scope="package")
def goes_on(place):
    """What continues a run in so many processes, and returns its outcome and what it said."""

    def resume(name, *words, size=2):
        ended = drills.forked(place, name, "--resume", *words, size=size)
        assert [one.code for one in ended] == [0] * size, ended[0].said[-3000:]
        assert not list((place / name).glob(".checkpoint*")), "nothing is left over"
        return drifting.outcome(place / name), ended[0].said

    return resume
