"""Offers: what a handler declares, as a value that crosses from worker to replica."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve import App
from anyserve.capability import Capability
from anyserve.offers import Offer, declare, parse_specs


@given(
    st.sampled_from(["", "1", "2", "10"]),
    st.dictionaries(st.sampled_from(["model", "max_context"]), st.integers(0, 9)),
    st.booleans(),
)
def test_an_offer_is_the_same_after_it_has_crossed(
    version: str, attributes: dict[str, Any], decoupled: bool
) -> None:
    inputs = parse_specs({"x": "FP32[-1,4]?"})
    offer = Offer(Capability("echo", attributes, version), inputs, decoupled=decoupled)
    assert Offer.from_json(json.loads(json.dumps(offer.to_json()))) == offer


def test_an_offers_version_is_its_capabilitys_and_1_unless_declared() -> None:
    assert Offer(Capability("echo")).capability == Capability("echo", {}, "1")
    offer = declare("echo", {}, "7")
    assert (offer.version, offer.capability.version) == ("7", "7")
    assert offer.with_attributes({"model": "m"}).capability == Capability(
        "echo", {"model": "m"}, "7"
    )


@pytest.mark.parametrize("version", ["latest", "-1", "1.0", "١", "1" * 20, 3])
def test_a_version_that_is_no_number_is_refused_where_it_is_declared(version: Any) -> None:
    with pytest.raises(ValueError, match="version"):
        App().capability("echo", version=version)(lambda request, context: None)
