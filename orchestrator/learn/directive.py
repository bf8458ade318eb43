"""What the workers of a training are asked to do next."""

import enum


class Directive(enum.IntEnum):
    """Where workers are asked for several, the highest counts."""

    GO_ON = 0
    STOP = 1  # save, and leave the rest for a later start: a machine is about to be taken away, say
    GO_BACK = 2  # to the newest checkpoint
