"""`gatecast doctor`: finds what is wrong with a set-up, and names the remedy.

`command` is what the user types, and `examination` the order of the checks; `variables`, `queues`, `table`, `endpoint`,
`permissions` and `quotas` are the checks; `findings` what they return. No check changes anything: what could is asked
for in a way that the service must reject, or has no effect.
"""
