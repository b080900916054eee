"""The command ``neolayer``. What a command needs is imported when it is called, so that help comes at once."""

import json
import sys

from cyclopts import App
from rich.console import Console

from neolayer import __version__
from neolayer.core.errors import ServiceError

app = App(
    name="neolayer",
    version=__version__,
    help="JavaScript functions in a trusted execution environment and exactly-once transactions for Neo N3.",
)
app.command(
    "neolayer.cli.up:up",
    name="up",
    help="Start the whole system on this machine; Ctrl-C stops it.",
    help_epilogue="Example: neolayer up",
)
app.command("neolayer.cli.functions:app", name="functions", help="JavaScript functions that run in the enclave.")
app.command("neolayer.cli.executions:app", name="executions", help="Runs of functions.")
app.command("neolayer.cli.secrets:app", name="secrets", help="Secrets that only functions can read.")
app.command("neolayer.cli.wallets:app", name="wallets", help="Wallets whose keys live in the enclave.")
app.command("neolayer.cli.tx:app", name="tx", help="Transactions.")
app.command("neolayer.cli.keys:app", name="keys", help="API keys of this tenant.")
app.command(
    "neolayer.cli.chain:app",
    name="chain",
    help="Neo nodes that the service uses; contracts to watch.",
)
app.command("neolayer.cli.devnet:app", name="devnet", help="The private Neo network of `neolayer up`.")
app.command(
    "neolayer.cli.doctor:doctor",
    name="doctor",
    help="Look at this installation and say what is wrong and what to do.",
    help_epilogue="Example: neolayer doctor",
)
app.command("neolayer.cli.tenants:app", name="tenants", help="Tenants of this deployment (operator).")
app.command("neolayer.cli.workers:app", name="workers", help="Worker processes of this deployment (operator).")
app.command(
    "neolayer.cli.serve:api",
    name="api",
    help="Serve the HTTP API; one of the processes of `neolayer up`, apart.",
    help_epilogue="Example: NEOLAYER_DATABASE_URL=… NEOLAYER_VALKEY_URL=… NEOLAYER_RPC_URLS=… neolayer api",
)
app.command(
    "neolayer.cli.serve:worker",
    name="worker",
    help="Run asynchronous executions and send transactions; one of the processes of `neolayer up`, apart.",
    help_epilogue="Example: NEOLAYER_DATABASE_URL=… NEOLAYER_VALKEY_URL=… NEOLAYER_RPC_URLS=… neolayer worker",
)
app.command(
    "neolayer.cli.serve:migrate",
    name="migrate",
    help="Bring the database's schema to this version.",
    help_epilogue="Example: NEOLAYER_DATABASE_URL=… neolayer migrate",
)


def main() -> None:
    """Run the command line. An error of the service is one line on stderr and an exit code."""
    try:
        app()
    except ServiceError as error:
        if "--json" in sys.argv:
            # Programs get the problem as the API gave it, in the same shape for our own errors.
            own = {"detail": error.detail, "code": error.code, "retryable": error.retryable, **error.extra}
            print(json.dumps(getattr(error, "body", own), default=str, ensure_ascii=False))
            sys.exit(getattr(error, "exit_code", 1))
        line = " ".join(error.detail.split())
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_plain(line)}")
        sys.exit(getattr(error, "exit_code", 1))
    except BrokenPipeError:
        # Whoever read our output has left.
        sys.stdout = None
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)


def _plain(text: str) -> str:
    """Brackets are not markup here."""
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
