#!/usr/bin/env python3
"""Writes, reads and watches ConfigMaps through one or more API servers while faults happen, and says what was lost.

    checker.py --cert ADMIN.pem --key ADMIN-key.pem --stop FILE https://A:6443 https://B:6443

Prints `begun` when its clients are at work and runs until FILE exists; then waits until everything can be compared and
prints one line of JSON:
  writes     acknowledged writes; `errors`: refused or unanswered ones, each tried again
  gap        the longest time without an acknowledged write, in seconds
  lost       acknowledged writes that are not there afterwards
  backwards  reads that showed an older state than an earlier read, whichever servers answered
  missed     acknowledged writes that a watcher did not see; `repeated`: events seen twice or out of order
  relists    times a watcher had to begin anew, as its position was no longer kept
"""
import argparse
import http.client
import json
import os
import random
import ssl
import sys
import threading
import time
from urllib.parse import urlsplit

PATH = "/api/v1/namespaces/faults/configmaps"


class Api:
    """One server; a new connection whenever the last one failed."""

    def __init__(self, url, context, timeout=5):
        self.host, self.context, self.timeout, self.connection = urlsplit(url).netloc, context, timeout, None

    def open(self):
        if self.connection is None:
            self.connection = http.client.HTTPSConnection(self.host, context=self.context, timeout=self.timeout)
        return self.connection

    def close(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def call(self, method, path, body=None):
        """Status and object; raises OSError where there is no answer."""
        try:
            connection = self.open()
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise OSError(error) from error


def number(config_map):
    return int(config_map.get("data", {}).get("n", "-1"))


def revision(config_map):
    return int(config_map["metadata"]["resourceVersion"])


class Writer(threading.Thread):
    """Counts one ConfigMap up, at whichever server answers."""

    def __init__(self, name, apis, stop):
        super().__init__(daemon=True)
        self.map, self.apis, self.stop = name, apis, stop
        self.acknowledged, self.errors, self.times, self.lost = {}, 0, [], []
        self.last, self.tried = -1, -1

    def run(self):
        current = None
        while not self.stop.is_set():
            api = random.choice(self.apis)
            try:
                if current is None:
                    current = self.look(api)
                    continue
                wanted = number(current) + 1
                self.tried = max(self.tried, wanted)
                current["data"] = {"n": str(wanted)}
                status, answer = api.call("PUT", f"{PATH}/{self.map}", current)
                if status != 200:
                    raise OSError(f"{status}: {answer.get('message', '')}")
                current = answer
                self.last = wanted
                self.acknowledged[wanted] = revision(answer)
                self.times.append(time.monotonic())
            except OSError:
                self.errors += 1
                current = None
                self.stop.wait(0.05)
            self.stop.wait(0.01)

    def look(self, api):
        """What is there now: not less than what was acknowledged, not more than what was tried."""
        status, answer = api.call("GET", f"{PATH}/{self.map}")
        if status == 404 and self.last < 0:
            body = {"metadata": {"name": self.map, "namespace": "faults"}, "data": {"n": "0"}}
            status, answer = api.call("POST", PATH, body)
        if status not in (200, 201):
            raise OSError(f"{status}: {answer.get('message', '')}")
        if number(answer) < self.last:
            self.lost.append((self.map, self.last, number(answer)))
        return answer


class Reader(threading.Thread):
    """Reads one after the other at any server; what it has seen stays seen."""

    def __init__(self, apis, stop):
        super().__init__(daemon=True)
        self.apis, self.stop = apis, stop
        self.seen, self.backwards, self.reads = {}, [], 0

    def run(self):
        while not self.stop.is_set():
            try:
                status, answer = random.choice(self.apis).call("GET", PATH)
                if status == 200:
                    self.reads += 1
                    for item in answer["items"]:
                        name = item["metadata"]["name"]
                        if number(item) < self.seen.get(name, -1):
                            self.backwards.append((name, self.seen[name], number(item)))
                        self.seen[name] = max(self.seen.get(name, -1), number(item))
            except OSError:
                pass
            self.stop.wait(0.02)


class Watcher(threading.Thread):
    """Watches at one server for as long as that answers, then at the next; goes on from what it saw last."""

    def __init__(self, apis, stop):
        super().__init__(daemon=True)
        self.apis, self.stop = apis, stop
        self.events, self.at, self.repeated, self.relists, self.starts = set(), None, [], 0, 0

    def run(self):
        turn = 0
        while not self.stop.is_set():
            api = self.apis[turn % len(self.apis)]
            turn += 1
            try:
                self.follow(api)
            except (OSError, http.client.HTTPException, ValueError):
                api.close()
            self.stop.wait(0.05)

    def follow(self, api):
        if self.at is None:
            status, answer = api.call("GET", PATH)
            if status != 200:
                raise OSError(status)
            self.relists += 1
            self.at = int(answer["metadata"]["resourceVersion"])
            self.events |= {(i["metadata"]["name"], number(i)) for i in answer["items"]}
        connection = api.open()
        connection.request("GET", f"{PATH}?watch=1&resourceVersion={self.at}&timeoutSeconds=30")
        answer = connection.getresponse()
        if answer.status == 410:
            self.at = None
        if answer.status != 200:
            raise OSError(answer.status)
        self.starts += 1
        while line := answer.readline():
            event = json.loads(line)
            if event["type"] == "ERROR":
                if event["object"].get("code") == 410:
                    self.at = None
                raise OSError("the watch ended")
            if event["type"] == "BOOKMARK":
                continue
            if revision(event["object"]) <= self.at:
                self.repeated.append((self.at, revision(event["object"])))
            self.at = revision(event["object"])
            self.events.add((event["object"]["metadata"]["name"], number(event["object"])))
        api.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--stop", required=True)
    parser.add_argument("servers", nargs="+")
    args = parser.parse_args()
    context = ssl._create_unverified_context()  # pylint: disable=protected-access
    context.load_cert_chain(args.cert, args.key)

    def apis():
        return [Api(url, context) for url in args.servers]

    deadline = time.monotonic() + 60
    namespace = {"metadata": {"name": "faults"}}
    while True:
        try:
            if apis()[0].call("POST", "/api/v1/namespaces", namespace)[0] in (201, 409):
                break
        except OSError:
            pass
        if time.monotonic() > deadline:
            sys.exit("no server answers")
        time.sleep(0.2)

    end, end_watch = threading.Event(), threading.Event()
    writers = [Writer(f"w{i}", apis(), end) for i in range(4)]
    reader = Reader(apis(), end)
    watchers = [Watcher(list(reversed(apis())) if i else apis(), end_watch) for i in range(2)]
    for watcher in watchers:
        watcher.start()
    while any(w.starts == 0 for w in watchers) and time.monotonic() < deadline:
        time.sleep(0.05)
    begun = time.monotonic()
    for thread in [*writers, reader]:
        thread.start()
    print("begun", flush=True)
    while not os.path.exists(args.stop):
        time.sleep(0.1)
    end.set()
    for thread in [*writers, reader]:
        thread.join()
    stopped = time.monotonic()

    wanted = {(w.map, n) for w in writers for n in w.acknowledged}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(
        {(w.map, w.last) for w in writers if w.last >= 0} <= watcher.events for watcher in watchers
    ):
        time.sleep(0.1)
    end_watch.set()

    lost = [x for w in writers for x in w.lost]
    for api in apis():
        for w in writers:
            for _ in range(100):
                try:
                    status, answer = api.call("GET", f"{PATH}/{w.map}")
                    if status == 200:
                        break
                except OSError:
                    pass
                time.sleep(0.2)
            else:
                lost.append((w.map, w.last, "no answer"))
                continue
            if not w.last <= number(answer) <= w.tried:
                lost.append((w.map, w.last, number(answer)))
    times = sorted(t for w in writers for t in w.times)
    points = [begun, *times, stopped]
    # A watcher that had to begin anew has skipped what lay between.
    missed = [len(wanted - w.events) for w in watchers if w.relists <= 1]
    print(json.dumps({
        "seconds": round(stopped - begun, 1),
        "writes": len(times),
        "errors": sum(w.errors for w in writers),
        "gap": round(max(b - a for a, b in zip(points, points[1:])), 1),
        "reads": reader.reads,
        "lost": len(lost),
        "backwards": len(reader.backwards),
        "missed": sum(missed),
        "repeated": sum(len(w.repeated) for w in watchers),
        "relists": sum(w.relists - 1 for w in watchers),
        "examples": [*lost[:3], *reader.backwards[:3], *[x for w in watchers for x in w.repeated[:2]]],
    }))


if __name__ == "__main__":
    main()
