"""A websocket server that speaks rosbridge's protocol v2: `python rosbridge_hub.py PORT`.

A hub of topics between its clients, as rosbridge_suite is with a ROS behind it; what is advertised
and subscribed is listed by /rosapi/publishers and /rosapi/subscribers. NaN becomes null, as it does
there. `python rosbridge_hub.py PORT alone` has no rosapi.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor


class Client(WebSocketServerProtocol):
    everyone: set[Client] = set()
    rosapi = "alone" not in sys.argv

    def onOpen(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.everyone.add(self)
        self.advertised: dict[str, str] = {}
        self.subscribed: set[str] = set()

    def onClose(self, *_: Any) -> None:
        self.everyone.discard(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        message = json.loads(payload, parse_constant=lambda _: None)
        getattr(self, f"do_{message['op']}")(message)

    def do_advertise(self, message: Any) -> None:
        if message["type"].count("/") not in (1, 2):
            self.tell(op="status", level="error", msg=f"no type {message['type']}")
        self.advertised[message["topic"]] = message["type"]

    def do_unadvertise(self, message: Any) -> None:
        self.advertised.pop(message["topic"], None)

    def do_subscribe(self, message: Any) -> None:
        self.subscribed.add(message["topic"])

    def do_unsubscribe(self, message: Any) -> None:
        self.subscribed.discard(message["topic"])

    def do_publish(self, message: Any) -> None:
        published = {key: message[key] for key in ("op", "topic", "msg")}
        for client in self.everyone:
            if message["topic"] in client.subscribed:
                client.tell(**published)

    def do_call_service(self, message: Any) -> None:
        question, topic = message["service"].rpartition("/")[2], message["args"]["topic"]
        if not self.rosapi:
            return
        topics = "advertised" if question == "publishers" else "subscribed"
        names = [client.peer for client in self.everyone if topic in getattr(client, topics)]
        values = {question: names}
        self.tell(op="service_response", id=message["id"], values=values, result=True)

    def tell(self, **message: Any) -> None:
        self.sendMessage(json.dumps(message).encode())


if __name__ == "__main__":
    factory = WebSocketServerFactory()
    factory.protocol = Client
    reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")
    print("ready", flush=True)
    reactor.run()
