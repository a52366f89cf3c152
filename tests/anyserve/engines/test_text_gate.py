"""Prompts are let in first come first served, while they are short together."""

from __future__ import annotations

import trio
import trio.testing

from anyserve.engines.text.gate import LIMIT, PromptGate


async def entering(gate: PromptGate, length: int, order: list[int]) -> None:
    await gate.enter(length)
    order.append(length)


async def test_short_prompts_go_in_together() -> None:
    gate = PromptGate()
    for _ in range(4):
        await gate.enter(LIMIT // 4)
    assert gate.computing == LIMIT


async def test_a_prompt_of_any_length_goes_in_alone(autojump_clock: trio.abc.Clock) -> None:
    gate = PromptGate()
    await gate.enter(LIMIT * 100)
    with trio.move_on_after(10) as scope:
        await gate.enter(1)
    assert scope.cancelled_caught
    gate.leave(LIMIT * 100)
    await gate.enter(1)
    assert gate.computing == 1


async def test_a_long_prompt_lets_others_in_when_little_of_it_is_left() -> None:
    gate = PromptGate()
    order: list[int] = []
    await gate.enter(LIMIT * 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(entering, gate, 100, order)
        await trio.testing.wait_all_tasks_blocked()
        gate.leave(LIMIT * 9)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        gate.leave(100)
    assert order == [100]
    assert gate.computing == LIMIT


async def test_a_short_prompt_doesnt_overtake_a_long_one() -> None:
    gate = PromptGate()
    order: list[int] = []
    await gate.enter(10)
    async with trio.open_nursery() as nursery:
        for length in (LIMIT, 20):
            nursery.start_soon(entering, gate, length, order)
            await trio.testing.wait_all_tasks_blocked()
        assert order == []
        gate.leave(10)
        await trio.testing.wait_all_tasks_blocked()
        assert order == [LIMIT]
        gate.leave(LIMIT)
    assert order == [LIMIT, 20]


async def test_a_cancelled_wait_leaves_the_way_free_for_the_next() -> None:
    gate = PromptGate()
    order: list[int] = []
    await gate.enter(LIMIT)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                waiting.start_soon(entering, gate, LIMIT, order)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(entering, gate, 5, order)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        gate.leave(LIMIT)
    assert order == [5]
    assert gate.computing == 5
