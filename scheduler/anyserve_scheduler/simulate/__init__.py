"""The fleet in simulation: the product's own decisions under a clock that jumps, with faults."""

from anyserve_scheduler.simulate.run import run
from anyserve_scheduler.simulate.scenario import Scenario, ScenarioError, load, parse
from anyserve_scheduler.simulate.summary import Result

__all__ = ["Result", "Scenario", "ScenarioError", "load", "parse", "run"]
