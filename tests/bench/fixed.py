"""A server that sends one fixed answer and parses nothing; it shows the load generator's own limit."""

import select
import socket
import sys

from bare import ANSWER

RESPONSE = b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


def main(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server, select.epoll() as epoll:
        epoll.register(server, select.EPOLLIN)
        clients = {}
        while True:
            for number, _ in epoll.poll():
                if number == server.fileno():
                    client, _ = server.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    clients[client.fileno()] = client
                    epoll.register(client, select.EPOLLIN)
                elif clients[number].recv(65536):
                    clients[number].sendall(RESPONSE)
                else:
                    clients.pop(number).close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
