"""A text ends before its first stop string, however it is cut into pieces."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from anyserve.engines.interface import Delta, Usage
from anyserve.engines.stops import StopStrings


def piece(text: str, number: int, reason: str | None = None) -> Delta:
    return Delta(text, Usage(3, number), reason, (number,))


def through(stops: list[str], *texts: str, reason: str = "length") -> list[Delta]:
    """What comes out for pieces that are numbered from 1; the last one has a reason."""
    watch = StopStrings(stops)
    given: list[Delta] = []
    for number, text in enumerate(texts, 1):
        out = watch.add(piece(text, number, reason if number == len(texts) else None))
        if out is not None:
            given.append(out)
            if out.finish_reason is not None:
                break
    return given


def test_what_can_be_no_stop_string_passes_at_once() -> None:
    assert through(["xyz"], "ab", "cd", "") == [
        piece("ab", 1),
        piece("cd", 2),
        piece("", 3, "length"),
    ]


def test_what_may_become_one_is_held_back_with_its_ids_and_comes_when_it_does_not() -> None:
    first, second = through(["xyz"], "ax", "y", "b", "")
    assert (first.text, first.token_ids, first.usage.output_tokens) == ("axyb", (1, 2, 3), 3)
    assert (second.text, second.finish_reason) == ("", "length")


def test_a_piece_that_cant_be_the_beginning_is_not_held_back_by_one_that_can() -> None:
    watch = StopStrings(["xyz"])
    assert watch.add(piece("a", 1)) == piece("a", 1)
    assert watch.add(piece("x", 2)) is None
    assert watch.add(piece("x", 3)) == piece("x", 2)


def test_the_text_ends_before_a_stop_string_and_brings_the_ids_of_whole_pieces_only() -> None:
    [last] = through(["xyz"], "ax", "y", "zb", "more")
    assert (last.text, last.finish_reason, last.token_ids) == ("a", "stop", ())
    assert last.usage.output_tokens == 3
    first, last = through(["xyz"], "a", "bx", "yz")
    assert (first.text, last.text, last.token_ids) == ("a", "b", ())


def test_a_text_that_ends_in_half_a_stop_string_is_given_whole() -> None:
    [last] = through(["xyz"], "ax", "y")
    assert (last.text, last.finish_reason, last.token_ids) == ("axy", "length", (1, 2))


def test_the_earliest_of_several_stop_strings_counts() -> None:
    [last] = through(["cd", "bcde"], "abcdef")
    assert last.text == "a"


letters = st.text("ab", max_size=3)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(letters, min_size=1, max_size=12),
)
def test_pieces_make_no_difference(stops: list[str], texts: list[str]) -> None:
    whole = "".join(texts)
    given = through(stops, *texts)
    joined = "".join(delta.text for delta in given)
    assert whole.startswith(joined)
    assert not any(stop in joined for stop in stops)
    stopped = any(stop in whole for stop in stops)
    assert given[-1].finish_reason == ("stop" if stopped else "length")
    if not stopped:
        assert joined == whole
    # At every point, the ids so far are those of the pieces whose text has come, in order.
    ids = [number for delta in given for number in delta.token_ids]
    assert ids == list(range(1, len(ids) + 1))
    for count in range(len(given) - 1):
        so_far = given[: count + 1]
        pieces = texts[: sum(len(delta.token_ids) for delta in so_far)]
        assert "".join(delta.text for delta in so_far) == "".join(pieces)


def test_the_ends_reason_is_kept() -> None:
    [last] = through(["xyz"], "a", reason="stop")
    assert last == attrs.evolve(piece("a", 1), finish_reason="stop")
