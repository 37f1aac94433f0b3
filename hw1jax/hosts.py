"""Several processes that run one program over all their devices: process 0 leads, the others do as it says.

Process 0 asks and tells the search, writes the files and says what comes next; all of them run the program on the
devices that they have. They talk over connections of their own, a line of JSON a message, which all go to one port of
process 0; JAX's own connections are led through the same port. So who dies is noticed here at once, and before JAX
notices: its runtime ends a process whose partner died with a stack dump (`client.h: Terminating process`).
"""

import json
import logging
import os
import queue
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

SECONDS_BETWEEN_SIGNS = 3  # of life
SECONDS_OF_SILENCE = 30  # then a process is taken for dead, though its connection stands
SECONDS_TO_PART = 1  # that the last words may take
LONGEST_GREETING = 1000  # bytes


class LostError(OSError):
    """Training with other processes has failed, so that nobody knows where they are."""


@dataclass
class _Peer:
    """Another process, at the other end of a connection."""

    number: int
    link: socket.socket
    inbox: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    sending: threading.Lock = field(default_factory=threading.Lock)
    parted: threading.Event = field(default_factory=threading.Event)  # it may end now
    gone: threading.Event = field(default_factory=threading.Event)


_peers: dict[int, _Peer] = {}  # process 0: all others; the others: process 0


def are_several() -> bool:
    """Whether this process is one of several."""
    if jax.process_count() > 1 and not _peers:
        raise ValueError("several processes are brought together by hosts.join, not by jax.distributed.initialize")
    return bool(_peers)


def follows() -> bool:
    """Whether this process does what another one says."""
    return 0 in _peers


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    versions: dict[str, str],
    timeout: float,
    stop: threading.Event,
    end: Callable[[str], NoReturn],
) -> bool:
    """Brings the processes together; to be called by all of them, before JAX is first used.

    Args:
      coordinator: HOST:PORT, where process 0 listens.
      num_processes: how many they are.
      process_id: this one's number, from 0. All three or none; JAX finds them on SLURM, Kubernetes and Cloud TPU.
      versions: of what computes, which must be the same in all processes.
      timeout: seconds to wait for the others.
      stop: gives up waiting when it is set.
      end: ends this process with one line. Called in a thread of its own, now or later, when another process fails.

    Returns:
      Whether all are there: False if `stop` was set.

    Raises:
      ValueError: what was given doesn't fit together, or the others don't come, or differ; the message says which.
    """
    if not timeout > 0:
        raise ValueError(f"--join-timeout {timeout:g} is no time to wait: give seconds")
    coordinator, num_processes, process_id, device_ids = _whereabouts(coordinator, num_processes, process_id, timeout)
    host, port = _host_and_port(coordinator)
    if not 0 <= process_id < num_processes:
        raise ValueError(f"--process-id {process_id} is none of 0 to {num_processes - 1} (--num-processes)")
    deadline = time.monotonic() + timeout
    if process_id == 0:
        service = _lead(port, num_processes, deadline, timeout, stop, end)
    else:
        service = _find(host, port, num_processes, process_id, deadline, timeout, stop, end)
    if service is None:
        return False
    agree(versions)
    # JAX's connections begin on this machine, whatever proxy others need.
    os.environ["no_grpc_proxy"] = "127.0.0.1"  # noqa: SIM112, gRPC knows it in small letters alone
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)  # it would warn of that very variable
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{service}",
            num_processes,
            process_id,
            device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=int(max(timeout, 10)),
            coordinator_bind_address=f"127.0.0.1:{service}",
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"JAX doesn't start with the other processes: {error}") from error
    for number, handler in handlers.items():
        signal.signal(number, handler)  # JAX waits for SIGTERM itself
    return True


def agree(identity: dict[str, Any]) -> None:
    """All processes: sees to it that what they are to do is the same, and waits until all have said so.

    Args:
      identity: what must be the same, as JSON holds it.

    Raises:
      ValueError: in process 0, the first difference. The others are told by `leave`, and end.
    """
    identity = _flat(json.loads(json.dumps(identity)))
    if follows():
        _send(_peers[0], {"identity": identity})
        receive()
        return
    for number, peer in sorted(_peers.items()):
        theirs = peer.inbox.get()["identity"]
        for name in sorted(identity.keys() | theirs.keys()):
            if identity.get(name) != theirs.get(name):
                raise ValueError(
                    f"process {number} has {name} = {theirs.get(name)}, process 0 has {identity.get(name)}: "
                    "start all processes with the same flags, data and versions"
                )
    send({"agreed": True})


def send(message: dict[str, Any]) -> None:
    """Process 0: what the others are to do, as JSON holds it. Does nothing where there are no others."""
    if not follows():
        for peer in _peers.values():
            _send(peer, message)


def receive() -> dict[str, Any]:
    """The other processes: what process 0 tells; empty when there is nothing more to do."""
    return _peers[0].inbox.get()


def share(arrays: Any) -> Any:
    """All processes: process 0's tree of arrays, bit for bit; the others give arrays of the same shapes and types."""

    def to_all(array):
        array = np.zeros(array.shape, array.dtype) if follows() else np.ascontiguousarray(array)
        as_bytes = array.reshape(-1).view(np.uint8)  # a sum of floats with 0 would lose the sign of another 0
        as_bytes = multihost_utils.broadcast_one_to_all(as_bytes, is_source=not follows())
        return np.asarray(as_bytes).astype(np.uint8).view(array.dtype).reshape(array.shape)

    return jax.tree.map(to_all, arrays)


@contextmanager
def leading() -> Iterator[None]:
    """Process 0: tells the others in the end that there is nothing more to train; how it failed, `leave` tells."""
    yield
    send({})


def leave(error: str | None = None) -> None:
    """The last call in each process that has joined: it may end after it, without leaving the others in the dark.

    Args:
      error: in one line, why this process can't go on; all others end with it. Without, the others wait here until
        process 0 has left: JAX ends processes that outlive one of them.
    """
    if follows() and error is None:
        _peers[0].parted.wait()
        return
    for peer in _peers.values():
        peer.parted.set()
        with suppress(LostError):
            _send(peer, {"parted": True} if error is None else {"failed": error})
    deadline = time.monotonic() + SECONDS_TO_PART
    for peer in _peers.values():  # what has not been read when this process ends would be lost
        peer.gone.wait(max(0, deadline - time.monotonic()))


def _whereabouts(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> tuple[str, int, int, Any]:
    """(HOST:PORT, processes, this one's number, its devices or None), as given, or as JAX finds them on a cluster."""
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise ValueError(f"--distributed needs {' and '.join(missing)} as well, or none of the three on a cluster")
    reason = "no cluster that JAX knows"
    with warnings.catch_warnings(record=True) as warned:
        try:
            # What jax.distributed.initialize calls as well. There is no public way to know before it waits, or to lead
            # its connections elsewhere.
            from jax._src.clusters import ClusterEnv

            coordinator, num_processes, process_id, devices = ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, num_processes, process_id, None, None, int(timeout)
            )
        except Exception as error:  # whatever a cluster's own interface chokes on
            devices, reason = None, f"{type(error).__name__}: {error}"
    if coordinator is None or num_processes is None or process_id is None:
        reason = " ".join([reason, *(str(warning.message) for warning in warned)])
        raise ValueError(
            "--distributed doesn't find the other processes by itself: give --coordinator HOST:PORT, --num-processes "
            f"and --process-id ({reason})"
        )
    return coordinator, num_processes, process_id, devices


def _host_and_port(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator {coordinator} is no HOST:PORT")
    return host.strip("[]"), int(port)


def _lead(
    port: int, num_processes: int, deadline: float, timeout: float, stop: threading.Event, end: Callable[[str], Any]
) -> int | None:
    """Process 0: waits for all others -> the port for JAX's service on this machine; None if stopped."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        service = free.getsockname()[1]
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=num_processes)
    except OSError as error:
        raise ValueError(f"can't listen on port {port} ({error.strerror}): give another --coordinator") from error
    guests: queue.SimpleQueue[tuple[int, int, socket.socket]] = queue.SimpleQueue()
    _in_thread(_receive, server, service, guests)
    while missing := [number for number in range(1, num_processes) if number not in _peers]:
        if stop.is_set():
            return None
        if time.monotonic() > deadline:
            names = ", ".join(map(str, missing[:5])) + (", ..." if missing[5:] else "")
            raise ValueError(f"process {names} didn't come within {timeout:g} s (--join-timeout)")
        try:
            number, others, link = guests.get(timeout=0.1)
        except queue.Empty:
            continue
        if number in missing and others == num_processes:
            _meet(_Peer(number, link), end)
        elif others != num_processes:
            reason = f"process {number} has --num-processes {others}, process 0 has {num_processes}"
            _refuse(link, reason)
            raise ValueError(reason)
        else:
            _refuse(link, f"process {number} is there already: give each process a --process-id of its own")
    _in_thread(_refuse_late, guests)
    send({"complete": True})
    return service


def _find(
    host: str,
    port: int,
    num_processes: int,
    process_id: int,
    deadline: float,
    timeout: float,
    stop: threading.Event,
    end: Callable[[str], Any],
) -> int | None:
    """Another process: finds process 0, waits for the rest -> a port here that leads to JAX's service there."""
    while True:
        if stop.is_set():
            return None
        try:
            link = socket.create_connection((host, port), timeout=min(2, timeout))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or error
                raise ValueError(
                    f"process 0 doesn't answer at {host}:{port} within {timeout:g} s (--join-timeout): {reason}"
                ) from error
            time.sleep(0.1)
    peer = _Peer(0, link)
    _send(peer, {"process": process_id, "num_processes": num_processes})
    _meet(peer, end)
    while not stop.is_set():
        try:
            peer.inbox.get(timeout=0.1)
        except queue.Empty:
            continue
        entrance = socket.create_server(("127.0.0.1", 0))
        _in_thread(_lead_through, entrance, host, port)
        return entrance.getsockname()[1]
    return None


def _meet(peer: _Peer, end: Callable[[str], Any]) -> None:
    """From here on, this process notices what becomes of the other one."""
    peer.link.settimeout(SECONDS_OF_SILENCE)
    peer.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _peers[peer.number] = peer
    _in_thread(_listen, peer, end)
    _in_thread(_give_signs, peer)


def _listen(peer: _Peer, end: Callable[[str], Any]) -> None:
    """Takes in what the other process says, and ends this one when it fails."""
    how = "has died or is out of reach"
    failure = None
    try:
        with peer.link.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "failed" in message:
                    failure = message["failed"]
                    break
                if "parted" in message:
                    peer.parted.set()
                elif "alive" not in message:
                    peer.inbox.put(message)
    except TimeoutError:
        how = f"has been silent for {SECONDS_OF_SILENCE:g} s"
    except (OSError, ValueError):
        pass  # it has vanished, or talks another language
    failure = failure or f"process {peer.number} {how}: the same command goes on from the last checkpoint"
    peer.gone.set()
    if not peer.parted.is_set():
        for other in _peers.values():  # if this is process 0, who alone knows them all
            if other is not peer:
                with suppress(LostError):
                    _send(other, {"failed": failure})
        end(failure)


def _give_signs(peer: _Peer) -> None:
    while not peer.gone.wait(SECONDS_BETWEEN_SIGNS):
        try:
            _send(peer, {"alive": True})
        except LostError:
            return  # `_listen` sees it too


def _send(peer: _Peer, message: dict[str, Any]) -> None:
    try:
        with peer.sending:
            peer.link.sendall(json.dumps(message).encode() + b"\n")
    except OSError as error:
        raise LostError(f"process {peer.number} is out of reach: {error}") from error


def _receive(server: socket.socket, service: int, guests: queue.SimpleQueue) -> None:
    """Process 0: takes every connection to its port, be it another process's own or JAX's."""
    while True:
        link, _ = server.accept()
        _in_thread(_greet, link, service, guests)


def _greet(link: socket.socket, service: int, guests: queue.SimpleQueue) -> None:
    """Hears who it is. Whoever doesn't say so is none of ours: ports are scanned."""
    link.settimeout(10)
    greeting = b""
    try:
        while not greeting.endswith(b"\n") and len(greeting) < LONGEST_GREETING:
            if not (byte := link.recv(1)):  # no more than this line, as the rest is for others to read
                break
            greeting += byte
        message = json.loads(greeting)
        if message == {"for": "jax"}:
            _connect(link, socket.create_connection(("127.0.0.1", service)))
        else:
            guests.put((int(message["process"]), int(message["num_processes"]), link))
    except (OSError, ValueError, KeyError, TypeError):
        link.close()


def _refuse(link: socket.socket, reason: str) -> None:
    with suppress(OSError):
        link.sendall(json.dumps({"failed": reason}).encode() + b"\n")


def _refuse_late(guests: queue.SimpleQueue) -> None:
    while True:
        number, _, link = guests.get()
        _refuse(link, f"process {number} is there already: give each process a --process-id of its own")


def _lead_through(entrance: socket.socket, host: str, port: int) -> None:
    """Leads JAX's connections from this machine to process 0."""
    while True:
        link, _ = entrance.accept()
        try:
            there = socket.create_connection((host, port), timeout=10)
            there.sendall(json.dumps({"for": "jax"}).encode() + b"\n")
        except OSError:
            continue  # open, though it leads nowhere: `_listen` notices, and JAX must not
        _connect(link, there)


def _connect(one: socket.socket, other: socket.socket) -> None:
    for link in (one, other):
        link.settimeout(None)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _in_thread(_pass_on, one, other)
    _in_thread(_pass_on, other, one)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """All that comes. Where it ends, the other side isn't closed: see the top of this file."""
    try:
        while content := source.recv(2**16):
            target.sendall(content)
    except OSError:
        pass


def _in_thread(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"plan": {"slots": 3}} -> {"plan.slots": 3}"""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
