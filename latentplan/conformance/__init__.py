"""What every env, model, ... promises, as checks to run; one file a kind.

`latentplan check KIND NAME` runs them over any name, class or plug-in; tests/contract does so over
all that is registered. A check is a plain function of a `suite.Subject` that raises `suite.Broken`
if a promise is broken; the first line of its docstring is the promise.
"""
