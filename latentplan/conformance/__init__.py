"""Conformance checks of envs, models, planners and other components, one file per kind.

`latentplan check KIND NAME` runs them over any registered name, plug-in or class, and
`tests/contract` over all registered names. A check is a function of a `suite.Subject` that raises
`suite.Broken` if a promise is broken; the first line of its docstring states the promise.
"""
