"""For all tests: a Ray that any of them starts asks for a token of this session's."""

import os
import secrets
import signal

# Ray reads these once, when it is first imported.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

# Started in the background by a script, this process and all that it starts would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
