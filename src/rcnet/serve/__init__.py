"""Serving networks under load: one that lowers its cost before it breaks its promise.

The engine knows no transport: `costs` learns what a call takes, `policies` choose settings, `scheduler` keeps the queue,
`worker` computes in a process of its own, `engine` runs them. `app` speaks HTTP.
"""
