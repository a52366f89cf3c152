"""The permit: whatever hands a request back, and in which order, it is delegated once at most."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from anyserve_scheduler.delegation import Handback, Permit
from hypothesis import given
from hypothesis import strategies as st

import anyserve.replica
from anyserve.capability import Capability
from anyserve.errors import FailedPrecondition

handbacks = st.builds(
    Handback,
    replica=st.text("abc", min_size=1, max_size=3),
    need=st.sampled_from([Capability("decode"), Capability("decode.heavy")]),
    reason=st.text(min_size=1, max_size=20),
)


@given(st.lists(handbacks, min_size=1, max_size=6))
def test_a_permit_is_consumed_by_the_first_hand_back_and_by_no_other(
    tried: list[Handback],
) -> None:
    permit = Permit()
    assert permit.delegations == 0
    permit.consume(tried[0])
    for handback in tried[1:]:
        with pytest.raises(FailedPrecondition) as caught:
            permit.consume(handback)
        assert tried[0].replica in caught.value.message
        assert tried[0].reason in caught.value.message
        assert handback.reason in caught.value.message
        assert permit.spent is tried[0]
        assert permit.delegations == 1


def test_a_request_that_arrives_delegated_is_never_delegated_again() -> None:
    first = Handback("a", Capability("decode"), "the queue is full")
    permit = Permit(first)
    assert permit.delegations == 1
    with pytest.raises(FailedPrecondition, match=r"a: the queue is full; then b: draining"):
        permit.consume(Handback("b", Capability("decode"), "draining"))


def test_in_a_replica_the_way_to_its_scheduler_is_the_only_one_out() -> None:
    """One module opens channels, at one place, and the address there is the scheduler's."""
    package = Path(anyserve.replica.__file__).parent
    sources = {path.name: path.read_text() for path in package.glob("*.py")}
    way_out = re.compile(r"(?<!_)(open_channel|open_tcp_stream|open_client|connect)\((.*)\)")
    opened = {name: found for name, text in sources.items() if (found := way_out.findall(text))}
    assert opened == {"replica.py": [("open_channel", "config.scheduler")]}
