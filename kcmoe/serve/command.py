# SPDX-License-Identifier: Apache-2.0
"""`kcmoe serve`: a model over HTTP, with a page to try it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kcmoe.config import arguments
from kcmoe.errors import UserError

if TYPE_CHECKING:
    from kcmoe.serve.service import Service

_EPILOG = """\
examples:
  kcmoe serve --checkpoint=runs/quickstart/reviews        then open the address that it prints
  curl -s localhost:8000/v1/classify -H 'content-type: application/json' -d '{"texts": ["정말 재밌어요"]}'

Only this machine can reach it unless --host says otherwise; 0.0.0.0 opens it to the whole network, without
a password. GET /openapi.json describes the interface. SIGTERM and Ctrl-C answer what was accepted, then end.
"""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        prog="kcmoe serve",
        description="A model over HTTP, with a page to try it in a browser.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--checkpoint",
        default="tiny",
        metavar="DIR",
        help="dir/checkpoint_N, or dir for its newest; default: the model that ships",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="gin file with the sizes, if config.gin is not beside it"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default: %(default)s"
    )
    parser.add_argument(
        "--port",
        type=arguments.between(int, 0, 65535),
        default=8000,
        help="default: %(default)s; 0 takes a free one",
    )
    parser.add_argument(
        "--max_lines",
        type=arguments.between(int, 1, 10**6),
        metavar="N",
        help="texts in one request; default: 1024",
    )
    parser.add_argument(
        "--queue",
        type=arguments.between(int, 1, 10**9),
        metavar="N",
        help="lines that may wait before 429; default: 8192",
    )
    parser.add_argument(
        "--timeout_s",
        type=arguments.between(float, 0.001, 86400),
        metavar="S",
        help="longest time to an answer; default: 60",
    )
    arguments.add_gin_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the verb; see `kcmoe serve --help`."""
    args, macros = arguments.parse_with_gin(_parser(), argv)
    logging.basicConfig(format="kcmoe serve: %(message)s", stream=sys.stderr)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError(
            "kcmoe serve needs Starlette and uvicorn: pip install -c constraints.txt -e '.[serve]'"
        ) from None
    from kcmoe.serve.limits import Limits

    given = {"lines": args.max_lines, "queue": args.queue, "answer_s": args.timeout_s}
    for name, value in given.items():
        if value is not None and value <= 0:
            raise UserError(f"--{_FLAGS[name]}={value} must be above zero")
    limits = dataclasses.replace(Limits(), **{k: v for k, v in given.items() if v is not None})
    limits = dataclasses.replace(limits, connections=min(limits.connections, _most_connections()))
    with contextlib.closing(listen(args.host, args.port)) as listener:
        from kcmoe.inference.predict import LanguageModel
        from kcmoe.serve.engine import Engine
        from kcmoe.serve.service import Service

        lm = LanguageModel.load(args.checkpoint, args.config, **dict(macros))
        service = Service(Engine(lm), limits)
        address = _address(args.host, listener)
        print(f"kcmoe serve: {service.engine.describe()['name']} at {address}", flush=True)
        if args.host not in _LOOPBACK:
            print(
                f"kcmoe serve: --host={args.host} lets other machines in, without a password",
                file=sys.stderr,
            )
        serve(service, listener, local=args.host in _LOOPBACK)
        if service.batcher.busy:
            # Python would end the compiler's thread in the middle of C++, which then aborts the process.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    return 0


_FLAGS = {"lines": "max_lines", "queue": "queue", "answer_s": "timeout_s"}


def _most_connections() -> int:
    """As many as this process may open files, with some left for other files; that limit is raised."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(8, soft - 128)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before a model is read for it.

    Raises:
      UserError: if the port is taken or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port={port} is no port; take one from 1 to 65535, or 0 for a free one")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise UserError(f"--host={host} is no address of this machine; try 127.0.0.1") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        # Two processes may bind one port until one of them listens.
        found.listen(2048)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host={host} is no address of this machine; try 127.0.0.1") from None
        raise UserError(
            f"cannot listen at {host} port {port}: {error.strerror}; take another --port, or --port=0 "
            "for a free one"
        ) from None
    return found


def _address(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def serve(service: Service, listener: socket.socket, *, local: bool) -> None:
    """Answers until SIGTERM or Ctrl-C, then finishes what was accepted."""
    import uvicorn

    from kcmoe.serve.app import make_app
    from kcmoe.serve.protocol import protocol_for

    config = uvicorn.Config(
        make_app(service, local=local),
        http=protocol_for(service.limits),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="error",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(service.limits.answer_s) + 5,
    )

    class Server(uvicorn.Server):
        """Ends with status 0 when asked to; uvicorn would raise the signal again."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(number: int, _: object) -> None:
                service.stopping = True
                self.handle_exit(number, None)

            before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for one, handler in before.items():
                    signal.signal(one, handler)

    Server(config).run(sockets=[listener])
