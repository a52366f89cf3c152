"""Simulate a fleet: python -m anyserve_scheduler.simulate SCENARIO."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from anyserve_scheduler.routing import POLICIES
from anyserve_scheduler.simulate.policies import policy_of
from anyserve_scheduler.simulate.report import as_html, as_text
from anyserve_scheduler.simulate.run import run
from anyserve_scheduler.simulate.scenario import ScenarioError, load

_DESCRIPTION = """\
Run the scheduler's own decisions over a simulated fleet, and check after the run that every
request had one outcome, that none was delegated twice, and that nothing was leaked.
"""
_EXAMPLES = """\
examples:
  python -m anyserve_scheduler.simulate examples/scenarios/faults.toml
  python -m anyserve_scheduler.simulate examples/scenarios/conversations.toml \\
      --policy prefix,least_wait --html /tmp/report.html
  python -m anyserve_scheduler.simulate examples/scenarios/stale.toml \\
      --policy prefix:fresh=0.5,prefix,prefix:fresh=inf

It exits with 1 where an invariant was broken, and with 2 for a scenario that makes no sense.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m anyserve_scheduler.simulate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenario", type=Path, help="a TOML file; docs/simulation.md says what is in it")
    add(
        "--policy",
        type=_policies,
        default=("prefix",),
        metavar="NAME,...",
        help=f"policies to put side by side, of {', '.join(POLICIES)} (prefix),"
        " with values of their own as in prefix:fresh=0.5:load_weight=2",
    )
    add("--seed", type=int, help="another one than the scenario's")
    add("--requests", type=int, help="as many instead of the scenario's")
    add("--html", type=Path, metavar="FILE", help="write the table and plots there, too")
    add("--json", action="store_true", help="print the numbers as one JSON list")
    options = parser.parse_args(arguments)
    try:
        scenario = load(options.scenario)
        if options.seed is not None:
            scenario = attrs.evolve(scenario, seed=options.seed)
        if options.requests is not None:
            if options.requests < 1:
                parser.error("--requests is 1 or more")
            scenario = attrs.evolve(scenario, requests=options.requests)
        results = [run(scenario, policy) for policy in options.policy]
        if options.json:
            sys.stdout.write(json.dumps([attrs.asdict(result) for result in results]) + "\n")
        else:
            sys.stdout.write(as_text(results) + "\n")
        if options.html is not None:
            options.html.write_text(as_html(results))
    except (ScenarioError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    return 1 if any(result.broken for result in results) else 0


def _policies(text: str) -> tuple[str, ...]:
    policies = tuple(text.split(","))
    for policy in policies:
        try:
            policy_of(policy)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return policies


if __name__ == "__main__":
    # A fleet is a large heap that lives on, and each request a little garbage: look seldom.
    gc.set_threshold(100_000, 50, 100)
    sys.exit(main())
