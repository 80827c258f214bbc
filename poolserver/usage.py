"""What ``--help`` says beside the options."""

EXIT_CODES = """
\b
Exit codes:
   0  done; also after TERM, INT and QUIT
   1  it failed while running, or what was asked did not happen
   2  wrong command line
  69  no server answers at the control socket
  71  the system refused (bind, fork, permission)
  78  the configuration or the handler cannot be used
"""

SIGNALS = """
\b
Signals to the master:
  TERM        stop gracefully: open connections have timeouts.graceful to finish
  INT, QUIT   stop now
  HUP         reload: the configuration and the handler's code as they are now
  USR1        reopen the log file
  USR2        upgrade: a new master on the same listeners takes over when it is ready
  TTIN, TTOU  one worker more, one less
"""

FIRST_STEPS = """
\b
To begin with:
  poolserver run poolserver.examples.echo:EchoHandler
  poolserver COMMAND --help
"""
