"""Actors on Trio: state with one task of its own, reached by messages and kept up by supervisors.

    spec = ChildSpec("counter", Counter)
    supervisor = Supervisor([spec])
    async with open_tree("root", supervisor) as tree:
        counter = supervisor.address(spec)
        await counter.tell(Add(2))
        total = await counter.ask(Get)
        print(tree.snapshot(trio.current_time()))

`examples/actors_counter.py` is the whole of it. `anyserve_actors.tracing` records what a live
process does. `anyserve_actors.asyncio_bridge`, for programs that need an asyncio library, is
imported by itself.
"""

from anyserve_actors.actor import Actor, ActorLogger, Context
from anyserve_actors.child import ChildSpec
from anyserve_actors.chrome import chrome_trace
from anyserve_actors.errors import (
    ActorError,
    ActorGone,
    ChildExists,
    MailboxFull,
    NoSuchChild,
    RestartIntensityExceeded,
)
from anyserve_actors.mailbox import Address, Mailbox, Reply
from anyserve_actors.recording import Recording
from anyserve_actors.restarts import Backoff, Policy, Restart, Strategy
from anyserve_actors.supervisor import Supervisor
from anyserve_actors.system import Tree, open_tree
from anyserve_actors.tracing import TracingError, span
from anyserve_actors.tree import Detail, Node, State

__all__ = [
    "Actor",
    "ActorError",
    "ActorGone",
    "ActorLogger",
    "Address",
    "Backoff",
    "ChildExists",
    "ChildSpec",
    "Context",
    "Detail",
    "Mailbox",
    "MailboxFull",
    "NoSuchChild",
    "Node",
    "Policy",
    "Recording",
    "Reply",
    "Restart",
    "RestartIntensityExceeded",
    "State",
    "Strategy",
    "Supervisor",
    "TracingError",
    "Tree",
    "chrome_trace",
    "open_tree",
    "span",
]
