"""`gatecast emulator`: the emulator's own command."""

import typer


def emulator(context: typer.Context) -> int:
    """Emulate one WebSocket API of API Gateway on this machine, until Ctrl-C.

    The options are those of the emulator: gatecast emulator --help. It needs the extra gatecast[emulator].
    """
    from gatecast.emulator import main

    return main(context.args)
