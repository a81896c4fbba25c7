"""What sampling takes in arithmetic and operator calls, which no other load of the machine changes."""

from counted import lerobots_calls, lerobots_teraflops, our_calls, our_teraflops
from sizes import SIZES


def test_a_denoising_step_has_at_most_half_of_lerobots_operator_calls():
    assert our_calls(SIZES["mid"]) <= 0.5 * lerobots_calls(SIZES["mid"])


def test_a_sample_at_the_real_size_takes_at_most_two_thirds_of_lerobots_arithmetic():
    """The mathematics needs 0.65 of it: 2 of 3 cameras, 20 of 48 prompt tokens."""
    ours, lerobots = our_teraflops(SIZES["real"]), lerobots_teraflops(SIZES["real"])
    assert 0.6 < ours / lerobots <= 0.66
