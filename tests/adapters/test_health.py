"""When an address is out of order, when it is excused, and when it is well again."""

from __future__ import annotations

from tetrapylon.adapters.health import PROBE_S, RESTART_S, Health


def strange(limit: int = 5, window_s: float = 10.0) -> Health:
    """An address that nobody has been connected to yet."""
    return Health(limit, window_s)


def proven() -> Health:
    health = strange()
    health.connected(0.0)
    assert health.is_well
    return health


def test_the_breaker_opens_at_its_limit_within_the_window() -> None:  # F3
    health = strange()
    assert [health.refused(now) for now in (0.0, 1.0, 2.0, 3.0)] == [False] * 4
    assert health.refused(9.0)
    assert health.is_open
    assert not health.refused(9.1), "it opens once"


def test_failures_that_are_far_apart_do_not_open_it() -> None:
    health = strange()
    for now in (0.0, 3.0, 6.0, 9.0, 12.0, 15.0):
        assert not health.refused(now)
    assert health.refused(15.1), "five within ten seconds"


def test_without_a_limit_it_never_opens() -> None:
    health = strange(limit=0)
    for now in range(1000):
        assert not health.refused(now / 1000)
        assert not health.broke(now / 1000)
    assert not health.is_open
    assert not health.is_avoided


def test_one_probe_a_second_until_a_connection_is_made() -> None:  # F3
    health = strange()
    for _ in range(5):
        health.refused(1.0)
    assert not health.is_probe_due(1.0 + PROBE_S / 2)
    assert health.is_probe_due(1.0 + PROBE_S)
    health.probe(2.5)
    assert not health.is_probe_due(2.6)
    health.refused(2.6)
    assert not health.is_probe_due(2.5 + 0.79 * PROBE_S)
    assert health.is_probe_due(2.5 + 1.21 * PROBE_S)
    assert health.connected(3.5), "it closes"
    assert not health.is_open
    assert not health.connected(3.6), "once"
    assert not health.refused(20.0), "and begins to count anew"


def test_who_was_well_is_excused_for_a_restart() -> None:  # F2
    health = proven()
    for tick in range(100):
        assert not health.refused(100.0 + tick * RESTART_S / 101)
        assert health.is_excused(100.0 + tick * RESTART_S / 101)
    health.connected(100.0 + 0.99 * RESTART_S)
    assert health.is_well


def test_who_was_never_well_is_not_excused() -> None:  # F1
    health = strange()
    health.refused(1.0)
    assert not health.is_excused(1.0)


def test_who_stays_away_is_out_of_order() -> None:
    health = proven()
    health.refused(100.0)
    late = 100.0 + RESTART_S
    assert not health.is_excused(late)
    assert [health.refused(late) for _ in range(5)] == [False] * 4 + [True]
    assert not health.is_excused(late), "nobody waits for what is out of order"


def test_five_restarts_in_a_row_are_excused() -> None:  # F2
    health = proven()
    for restart in range(5):
        down = 100.0 + restart
        for tick in range(30):
            assert not health.refused(down + tick / 100)
            assert health.is_excused(down + tick / 100)
        health.connected(down + 0.3)
    assert not health.is_open


def test_one_that_is_away_half_of_the_time_is_not_excused_for_long() -> None:  # F3
    for period in (0.02, 0.2, 1.0, 4.0):
        health = proven()
        opened_at = None
        for tick in range(20 * 200):
            now = 100.0 + tick / 200
            if (now - 100.0) % period < period / 2:
                if health.refused(now):
                    opened_at = now
                    break
            else:
                health.connected(now)
        assert opened_at is not None, f"period {period}"
        assert opened_at < 110.0, f"period {period}"


def test_a_long_absence_is_forgotten_after_a_window() -> None:
    health = proven()
    for tick in range(1000):
        health.refused(100.0 + tick)
    health.connected(1100.0)
    health.refused(1101.0)
    assert health.is_excused(1101.0)
    assert not health.is_excused(1101.5)
    health.connected(1101.5)
    health.refused(1112.0)
    assert health.is_excused(1112.0 + 0.99 * RESTART_S)


def test_breaks_count_in_a_row() -> None:
    health = proven()
    for now in range(4):
        assert not health.broke(now)
    health.answered()
    assert health.is_well
    for now in range(4):
        assert not health.broke(now)
    assert health.broke(4)
    assert health.is_avoided
    assert not health.is_open
    assert not health.is_probe_due(4.5)
    assert health.is_probe_due(5.0)
    assert health.answered()
    assert not health.answered()
    assert health.is_well


def test_a_connection_alone_does_not_make_good_for_breaks() -> None:
    health = proven()
    for now in range(5):
        health.broke(now)
    health.connected(6)
    assert health.is_avoided
    assert not health.is_well
