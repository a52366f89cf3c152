"""Mailboxes, addresses and replies by themselves."""

from __future__ import annotations

import attrs
import pytest
import trio
from anyserve_actors.errors import ActorGone, MailboxFull
from anyserve_actors.mailbox import Address, Mailbox, Reply
from trio.testing import MockClock, wait_all_tasks_blocked


@attrs.frozen
class Question:
    reply: Reply[str]


def pair(capacity: int = 2) -> tuple[Mailbox[Question | str], Address[Question | str]]:
    mailbox = Mailbox[Question | str]("box", capacity)
    return mailbox, Address(mailbox)


async def test_messages_arrive_in_the_order_they_were_told() -> None:
    mailbox, address = pair()
    await address.tell("a")
    address.tell_nowait("b")
    assert mailbox.depth == 2
    assert [await mailbox.receive(), await anext(mailbox)] == ["a", "b"]
    with pytest.raises(trio.WouldBlock):
        mailbox.receive_nowait()


async def test_tell_waits_while_the_mailbox_is_full(autojump_clock: MockClock) -> None:
    mailbox, address = pair(capacity=1)
    await address.tell("a")
    with pytest.raises(MailboxFull, match="'box' is full: 1 messages"):
        address.tell_nowait("b")
    with trio.move_on_after(3) as limit:
        await address.tell("never sent")
    assert limit.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(address.tell, "b")
        await wait_all_tasks_blocked()
        assert await mailbox.receive() == "a"
    assert await mailbox.receive() == "b"


async def test_a_closed_mailbox_refuses_messages_and_fails_those_that_wait_to_send() -> None:
    mailbox, address = pair(capacity=1)
    await address.tell("a")

    async def refused() -> None:
        with pytest.raises(ActorGone, match="'box' is gone"):
            await address.tell("b")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused)
        await wait_all_tasks_blocked()
        mailbox.close()
    with pytest.raises(ActorGone):
        await address.tell("c")
    with pytest.raises(ActorGone):
        await address.ask(Question)
    with pytest.raises(ActorGone):
        address.tell_nowait("c")


async def test_a_reopened_mailbox_takes_messages_from_the_same_address() -> None:
    mailbox, address = pair()
    await address.tell("lost")
    mailbox.close()
    mailbox.reopen()
    await address.tell("kept")
    assert mailbox.depth == 1
    assert await mailbox.receive() == "kept"


async def test_ask_returns_the_first_answer() -> None:
    mailbox, address = pair()

    async def answer() -> None:
        question = await mailbox.receive()
        assert isinstance(question, Question)
        question.reply.set("first")
        question.reply.set("second")
        question.reply.fail(ValueError())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        assert await address.ask(Question) == "first"


async def test_ask_raises_the_error_that_it_is_answered_with() -> None:
    mailbox, address = pair()
    error = ValueError("no")

    async def answer() -> None:
        question = await mailbox.receive()
        assert isinstance(question, Question)
        question.reply.fail(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        with pytest.raises(ValueError, match="no") as caught:
            await address.ask(Question)
    assert caught.value is error


async def test_a_question_whose_asker_has_gone_is_not_received(autojump_clock: MockClock) -> None:
    mailbox, address = pair()
    with trio.move_on_after(1):
        await address.ask(Question)
    await address.tell("next")
    assert await mailbox.receive() == "next"
    assert mailbox.depth == 0


async def test_an_answer_to_someone_who_stopped_waiting_goes_nowhere(
    autojump_clock: MockClock,
) -> None:
    mailbox, address = pair()
    async with trio.open_nursery() as nursery:

        async def ask_for_a_second() -> None:
            with trio.move_on_after(1):
                await address.ask(Question)

        nursery.start_soon(ask_for_a_second)
        question = await mailbox.receive()
        assert isinstance(question, Question)
        assert question.reply.wanted
        await trio.sleep(2)
        assert not question.reply.wanted
        question.reply.set("late")


async def test_only_received_questions_fail_when_a_life_ends() -> None:
    mailbox, address = pair()
    answers: dict[str, str] = {}

    async def ask(name: str) -> None:
        try:
            answers[name] = await address.ask(Question)
        except ActorGone as gone:
            answers[name] = str(gone)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "received")
        await mailbox.receive()
        nursery.start_soon(ask, "waiting")
        await wait_all_tasks_blocked()
        mailbox.fail_questions()
        await wait_all_tasks_blocked()
        assert answers == {"received": "actor 'box' ended before it answered"}
        question = await mailbox.receive()
        assert isinstance(question, Question)
        question.reply.set("by the next life")
    assert answers["waiting"] == "by the next life"


async def test_all_questions_fail_when_a_mailbox_closes() -> None:
    mailbox, address = pair(capacity=1)

    async def ask() -> None:
        with pytest.raises(ActorGone):
            await address.ask(Question)

    async with trio.open_nursery() as nursery:
        for _ in range(4):  # one received, one in the mailbox, two waiting for room
            nursery.start_soon(ask)
        await mailbox.receive()
        await wait_all_tasks_blocked()
        mailbox.close()
