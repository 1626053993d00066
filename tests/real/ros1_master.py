"""A ROS 1 master: `python tests/real/ros1_master.py PORT`. It prints `ready` when it listens."""

import socket
import sys
import threading
import time

import rosmaster


def tell(port: int) -> None:
    """Print `ready` once somebody listens at that port."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            print("ready", flush=True)
            return


if __name__ == "__main__":
    threading.Thread(target=tell, args=(int(sys.argv[1]),), daemon=True).start()
    rosmaster.rosmaster_main(["rosmaster", "--core", "-p", sys.argv[1]])
