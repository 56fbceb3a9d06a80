#!/usr/bin/env python3
"""{{name}}: a plugin for Demi. Nothing but Python's own library is needed.

JSON-RPC 2.0, one message a line: Demi asks on stdin, answers go to stdout, and stderr is the log.
"""

import base64
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

OUT = sys.stdout.buffer
sys.stdout = sys.stderr  # so that a print() by mistake becomes a line of the log and not a broken message
WRITING = threading.Lock()


class Mistaken(Exception):
    """Raise this when the request cannot be answered as it is: its caller is at fault, and not this plugin."""


# ---- your own code: these three -------------------------------------------------------------------------------------


def initialize(settings):
    """Called once, before anything else. `settings` are those of plugin.ron."""


def handle(body, request):
    """Answers one request; may be called by several threads at once.

    `body` is bytes, `request` has what else is known: from, kind, method, target, content_type. Return a str or bytes.
    """
    return body


def health():
    """None if all is well, or else a sentence about what is not."""
    return None


# ---- the protocol: no need to change anything below -----------------------------------------------------------------


def send(message):
    line = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
    with WRITING:
        OUT.write(line)
        OUT.flush()


def fail(id, code, text):
    send({"id": id, "error": {"code": code, "message": text}})


def how_it_is():
    error = health()
    return {"status": "down", "error": error} if error else {"status": "up"}


def answer(id, request):
    """Runs on a thread of the pool: whatever goes wrong here costs one request."""
    try:
        coded = request.get("body_base64")
        body = base64.b64decode(coded) if coded is not None else request.get("body", "").encode()
        reply = handle(body, request)
        if isinstance(reply, bytes):
            try:
                result = {"body": reply.decode()}
            except UnicodeDecodeError:
                result = {"body_base64": base64.b64encode(reply).decode()}
        else:
            result = {"body": str(reply)}
        send({"id": id, "result": {"status": 200, "content_type": "text/plain; charset=utf-8", **result}})
    except Mistaken as mistake:
        fail(id, -32001, str(mistake))
    except Exception as error:
        fail(id, -32000, f"{type(error).__name__}: {error}")


def main():
    with ThreadPoolExecutor(max_workers=8) as pool:  # leaving it waits for what was begun
        for line in sys.stdin.buffer:
            try:
                message = json.loads(line)
                method, id, params = message.get("method"), message.get("id"), message.get("params") or {}
            except (ValueError, AttributeError, RecursionError):
                print("passed over a line that is no message")
                continue
            if method == "initialize":
                if params.get("protocol") != 1:
                    fail(id, -32001, "only protocol 1 is spoken here")
                    continue
                try:
                    initialize(params.get("settings") or {})
                    send({"id": id, "result": {"protocol": 1}})
                except Exception as error:
                    fail(id, -32000, f"{type(error).__name__}: {error}")
            elif method == "handle":
                pool.submit(answer, id, params)
            elif method in ("health", "trim"):  # trim asks to give memory back; here there is nothing to give
                send({"id": id, "result": how_it_is()})
            elif method == "shutdown":
                break
            elif method == "cancel":
                pass  # nobody waits for that answer any more, and nobody minds it
            elif method is not None and id is not None:
                fail(id, -32601, f"there is no method {method!r}")


main()
