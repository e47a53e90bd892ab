"""The tables: complete, closed, and in keeping with the specification's order."""

from __future__ import annotations

import pytest

from tetrapylon.protocols.fastcgi.records import Role
from tetrapylon.protocols.fastcgi.state import (
    BEGIN_STEPS,
    TRANSITIONS,
    IllegalStep,
    RequestState,
    Side,
    State,
    Step,
)

CLIENT, RESPONDER = Side.CLIENT, Side.RESPONDER


def reachable(side: Side) -> set[State]:
    found = {State.IDLE}
    waiting = [State.IDLE]
    while waiting:
        for state in TRANSITIONS[side][waiting.pop()].values():
            if state not in found:
                found.add(state)
                waiting.append(state)
    return found


@pytest.mark.parametrize("side", Side)
def test_every_state_is_reachable_and_has_a_row(side: Side) -> None:
    assert reachable(side) == set(TRANSITIONS[side])


def test_every_state_belongs_to_a_side() -> None:
    assert set(State) == set(TRANSITIONS[CLIENT]) | set(TRANSITIONS[RESPONDER])


@pytest.mark.parametrize("side", Side)
def test_end_request_ends_whatever_is_open(side: Side) -> None:
    # FCGI-5.5-NOEOS, FCGI-6.2-EARLY: without the end of a stream, before the end of the body
    for state, row in TRANSITIONS[side].items():
        if state in (State.IDLE, State.DONE):
            assert Step.END not in row
        else:
            assert row[Step.END] is State.DONE


@pytest.mark.parametrize(
    ("role", "steps"),
    [
        (Role.RESPONDER, [Step.PARAMS, Step.PARAMS_END, Step.STDIN, Step.STDIN_END]),
        (Role.AUTHORIZER, [Step.PARAMS, Step.PARAMS_END]),
        (
            Role.FILTER,
            [Step.PARAMS, Step.PARAMS_END, Step.STDIN, Step.STDIN_END, Step.DATA, Step.DATA_END],
        ),
    ],
)
def test_a_role_decides_the_streams_and_their_order(role: Role, steps: list[Step]) -> None:
    # FCGI-5.1-BEGIN-FIRST, FCGI-5.2-PARAMS-ORDER, FCGI-5.3-STDIN-ORDER
    client_steps = [step for step in Step if step < Step.STDOUT and step != Step.ABORT]
    request = RequestState()
    expected = [BEGIN_STEPS[role], *steps]
    for number, step in enumerate(expected):
        legal = {step}
        if number and expected[number - 1] in (Step.PARAMS, Step.STDIN, Step.DATA):
            legal.add(expected[number - 1])  # more of the same stream
        if step in (Step.PARAMS, Step.STDIN, Step.DATA):
            legal.add(expected[number + 1])  # an empty one
        if number == 0:
            legal = set(BEGIN_STEPS.values())
        assert {
            step for step in client_steps if step in TRANSITIONS[CLIENT][request.states[CLIENT]]
        } == legal
        request.process(CLIENT, step)
    assert request.states[CLIENT] is State.SENT
    assert not set(TRANSITIONS[CLIENT][State.SENT]) & set(client_steps)


def test_abort_from_every_open_state_but_once() -> None:
    # FCGI-5.4-ABORT
    for state, row in TRANSITIONS[CLIENT].items():
        if state in (State.IDLE, State.DONE, State.ABORTED):
            assert Step.ABORT not in row
        else:
            assert row[Step.ABORT] is State.ABORTED
    assert set(TRANSITIONS[CLIENT][State.ABORTED]) == {Step.END}


def test_output_streams_interleave_and_end_independently() -> None:
    # FCGI-6.1-INTERLEAVE
    request = RequestState()
    request.process_shared(Step.BEGIN_RESPONDER)
    for step in (Step.STDOUT, Step.STDERR, Step.STDOUT, Step.STDOUT_END, Step.STDERR):
        request.process(RESPONDER, step)
    with pytest.raises(IllegalStep, match="STDOUT of the responder in state STDOUT_ENDED"):
        request.process(RESPONDER, Step.STDOUT)
    assert request.states == [State.RESPONDER_PARAMS, State.STDOUT_ENDED]
    request.process(RESPONDER, Step.STDERR_END)
    with pytest.raises(IllegalStep):
        request.process(RESPONDER, Step.STDERR)
    request.process_shared(Step.END)
    assert request.states == [State.DONE, State.DONE]


@pytest.mark.parametrize("side", Side)
def test_an_illegal_step_changes_nothing(side: Side) -> None:
    for state, row in TRANSITIONS[side].items():
        for step in set(Step) - set(row):
            request = RequestState()
            request.states[side] = state
            with pytest.raises(IllegalStep):
                request.process(side, step)
            assert request.states[side] is state
