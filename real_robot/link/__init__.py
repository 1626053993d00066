"""The link between a node and its planner: messages over a socket."""
