"""Handlers to run at once, and to copy from.

Each is an ordinary ``socketserver`` handler (or server class) that needs nothing of poolserver, so each also
runs under the standard library's servers. All of them read with a limit and answer a bounded number of
requests: what a client sends may be wrong, endless or never come, and must not cost more than its lane. How
long a client may take is not their affair: ``[timeouts]`` says it for every handler.
"""
