"""Serving networks under load: the cost of answers is lowered before the latency objective is missed.

The engine knows no transport: `costs` learns the time of calls, `demand` what clients ask for, `policies` choose settings,
`scheduler` keeps the queue, `worker` computes in a separate process, `engine` connects them. `app` speaks HTTP.
"""
