"""A Kubernetes control plane on 127.0.0.1: etcd, API server, controller manager, scheduler, and kwok for nodes, pods.

`ControlPlane.start()` starts one of our own; `ControlPlane.from_kubeconfig(path)` uses one that exists, and neither
starts nor stops anything there.
"""

import base64
import contextlib
import functools
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.cluster.build import find
from tests.cluster.loopback import eventually, fetch, free_ports
from tests.cluster.pki import Authority, write_signing_keys
from tests.cluster.processes import Child, Children
from tests.cluster.prometheus import Prometheus
from tests.cluster.tools import Tools, find_tools

HERE = Path(__file__).parent
GPU = "nvidia.com/gpu"
READY_TIMEOUT_S = 60.0
Manifest = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


class ControlPlaneError(RuntimeError):
    """The control plane is not able to do what was asked."""


class CommandError(ControlPlaneError):
    """kubectl or helm failed; `stdout`, `stderr` and `status` hold what it said."""

    def __init__(self, done: "subprocess.CompletedProcess[str]", note: str) -> None:
        self.status, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        words = [Path(done.args[0]).name, *done.args[1:]]
        super().__init__(f"`{' '.join(words)}` ended with status {self.status}: {self.stderr.strip()}{note}")


class ControlPlane:
    """A cluster to test against, as a context manager. Made by `start` or `from_kubeconfig`.

    kubeconfig: admin kubeconfig file. url, ca_file: of the API server (ca_file is None where the system's CAs count).
    run_dir: our files (logs in `logs/`); removed by `stop` unless `keep_run_dir`. started_in_s: how long starting took.
    """

    def __init__(self, kubeconfig: Path, run_dir: Path, *, keep_run_dir: bool, local: "_Local | None") -> None:
        self.kubeconfig = kubeconfig
        self.run_dir = run_dir
        self.started_in_s = 0.0
        self._keep_run_dir = keep_run_dir
        self._local = local
        self._prometheus: list[Prometheus] = []
        self._cluster = self._cluster_entry()
        self.url = str(self._cluster["server"])
        self.ca_file: Path | None = None
        if data := self._cluster.get("certificate-authority-data"):
            self.ca_file = run_dir / "cluster-ca.crt"
            self.ca_file.write_bytes(base64.b64decode(data))

    # -- life ---------------------------------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        *,
        nodes: int = 2,
        gpus_per_node: int = 8,
        controller_manager_args: Sequence[str] = (),
        apiserver_args: Sequence[str] = (),
        keep_run_dir: bool = False,
    ) -> Self:
        """Start a control plane with `nodes` GPU nodes (gpu-0, gpu-1, …) and one node without GPUs (cpu-0).

        Arguments given override ours. Builds the programs first when need be. Raises BuildError or ProcessError.
        """
        programs = {name: find(name) for name in ("etcd", "kubernetes", "kwok")}
        find_tools()
        started = time.monotonic()
        run_dir = Path(tempfile.mkdtemp(prefix="bandkeeper-"))
        children = Children(run_dir, remove=not keep_run_dir)
        try:
            local = _Local(run_dir, children, programs, apiserver_args, controller_manager_args)
            local.start(nodes, gpus_per_node)
            control_plane = cls(local.admin_kubeconfig, run_dir, keep_run_dir=keep_run_dir, local=local)
        except BaseException:
            children.close()
            if not keep_run_dir:
                shutil.rmtree(run_dir, ignore_errors=True)
            raise
        control_plane.started_in_s = time.monotonic() - started
        return control_plane

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Use the cluster of an existing kubeconfig (its current context). Starts nothing, stops nothing there."""
        if not path.is_file():
            raise ControlPlaneError(f"there is no kubeconfig at {path}")
        run_dir = Path(tempfile.mkdtemp(prefix="bandkeeper-"))
        try:
            return cls(path.absolute(), run_dir, keep_run_dir=False, local=None)
        except BaseException:
            shutil.rmtree(run_dir, ignore_errors=True)
            raise

    def stop(self) -> None:
        """End what this object started and remove its run directory. May be called twice."""
        for prometheus in self._prometheus:
            prometheus.close()
        if self._local is not None:
            self._local.children.close()
        if not self._keep_run_dir:
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- use ----------------------------------------------------------------------------------------------------------

    def kubectl(
        self,
        *args: str,
        input: Manifest | None = None,
        check: bool = True,
        kubeconfig: Path | None = None,
        timeout_s: float = 60.0,
    ) -> str:
        """Run kubectl and return its standard output.

        `input` goes to standard input: text, or an object or a list of objects, for `apply -f -`. Raises CommandError
        when it fails, unless `check` is off. `kubeconfig` acts as somebody else than the admin.
        """
        return self._command(self._tools.kubectl, args, input, check, kubeconfig, timeout_s)

    def helm(self, *args: str, check: bool = True, kubeconfig: Path | None = None, timeout_s: float = 120.0) -> str:
        """Run helm and return its standard output, as `kubectl` does."""
        return self._command(self._tools.helm, args, None, check, kubeconfig, timeout_s)

    def get(self, kind: str, name: str = "", *, namespace: str | None = None, selector: str = "") -> dict[str, Any]:
        """One object as JSON, or a List without a name."""
        words = ["get", kind, *([name] if name else []), "-o", "json"]
        words += ["-n", namespace] if namespace else []
        words += ["-l", selector] if selector else []
        document: dict[str, Any] = json.loads(self.kubectl(*words))
        return document

    def create_namespace(self, name: str) -> None:
        """Create a namespace and wait until pods are admitted in it, which needs its default service account."""
        self.kubectl("create", "namespace", name)
        wait = ["--for=create", "serviceaccount/default", "-n", name, "--timeout=30s"]
        self.kubectl("wait", *wait)

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace: its pods are gone when this returns, the rest follows in the background."""
        workloads = "deployments,statefulsets,replicasets,jobs"
        self.kubectl("delete", workloads, "--all", "-n", name, "--cascade=background", "--wait=false")
        at_once = ["--grace-period=0", "--force"] if self._local else []
        self.kubectl("delete", "pods", "--all", "-n", name, "--wait=true", *at_once)
        self.kubectl("delete", "namespace", name, "--wait=false")

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig that acts as an existing service account, with a token of one day."""
        token = self.kubectl("create", "token", name, "-n", namespace, "--duration=24h").strip()
        return self._write_kubeconfig(f"{namespace}-{name}", {"token": token})

    def user_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig that acts as any user and groups, by certificate. Only on a control plane of our own."""
        local = self._own("sign a certificate for a user; use service_account_kubeconfig")
        pair = local.ca.issue(f"user-{_file_name(user)}", user, usage="client", organisations=groups)
        return self._write_kubeconfig(f"user-{_file_name(user)}", _client_certificate(pair.certificate, pair.key))

    def add_gpu_node(self, name: str, gpus: int = 8) -> None:
        """One more GPU node. Only on a control plane of our own."""
        self._own("add nodes").add_node(name, gpus)

    def stop_apiserver(self, *, kill: bool = False) -> None:
        """End the API server, orderly or at once. Only on a control plane of our own."""
        self._own("stop the API server").stop_apiserver(kill=kill)

    def start_apiserver(self) -> None:
        """Start the API server again on the same port and with the same data, and wait until it is ready."""
        self._own("start the API server").start_apiserver()

    def restart_apiserver(self, *, kill: bool = True) -> None:
        """End the API server and start it again: watches break, and old resource versions are answered with 410."""
        self.stop_apiserver(kill=kill)
        self.start_apiserver()

    def start_prometheus(self, **options: Any) -> Prometheus:
        """A Prometheus that ends with this control plane; options as in `Prometheus.start`."""
        prometheus = Prometheus.start(self.run_dir / f"prometheus-{len(self._prometheus)}", **options)
        self._prometheus.append(prometheus)
        return prometheus

    def processes(self) -> dict[str, int]:
        """Our processes by name, with their ids; empty for an existing cluster."""
        return {} if self._local is None else self._local.children.pids()

    # -- inside -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _tools(self) -> Tools:
        return find_tools()

    def _own(self, what: str) -> "_Local":
        if self._local is None:
            raise ControlPlaneError(f"this is an existing cluster, on which the tests cannot {what}")
        return self._local

    def _command(
        self,
        program: Path,
        args: Sequence[str],
        input: Manifest | None,
        check: bool,
        kubeconfig: Path | None,
        timeout_s: float,
    ) -> str:
        command = [str(program), *args]
        environment = self._environment(kubeconfig or self.kubeconfig)
        try:
            done = subprocess.run(
                command,
                input=_text(input),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired as late:
            words = " ".join([program.name, *args])
            raise ControlPlaneError(f"`{words}` did not end within {timeout_s:g} s{self.dead_note()}") from late
        if check and done.returncode != 0:
            raise CommandError(done, self.dead_note())
        return done.stdout

    def _environment(self, kubeconfig: Path) -> dict[str, str]:
        """The caller's environment without its own Kubernetes settings, and with all caches in the run directory."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HELM_", "KUBE"))}
        helm = {f"HELM_{kind}_HOME": str(self.run_dir / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        kube = {"KUBECONFIG": str(kubeconfig), "KUBECACHEDIR": str(self.run_dir / "kubectl"), "KUBERC": "off"}
        return {**inherited, **helm, **kube}

    def dead_note(self) -> str:
        """What to say about those of our processes that ended by themselves; empty when all is well."""
        dead = self._local.children.dead() if self._local else []
        return "".join(
            f"\n{child.name} has ended with status {child.popen.returncode}:\n{child.tail()}" for child in dead
        )

    def _cluster_entry(self) -> dict[str, Any]:
        view = json.loads(self.kubectl("config", "view", "--minify", "--flatten", "-o", "json"))
        if not view.get("clusters"):
            raise ControlPlaneError(f"the kubeconfig {self.kubeconfig} has no current context with a cluster")
        entry: dict[str, Any] = view["clusters"][0]["cluster"]
        return entry

    def _write_kubeconfig(self, name: str, user: Mapping[str, str]) -> Path:
        return _write_kubeconfig(self.run_dir / "kubeconfigs" / f"{name}.yaml", self._cluster, user)


class _Local:
    """The processes and files of a control plane of our own."""

    def __init__(
        self,
        run_dir: Path,
        children: Children,
        programs: Mapping[str, Path],
        apiserver_args: Sequence[str],
        controller_manager_args: Sequence[str],
    ) -> None:
        self.run_dir = run_dir
        self.programs = programs
        self.apiserver_args = apiserver_args
        self.controller_manager_args = controller_manager_args
        self.children = children
        self.pki = run_dir / "pki"
        self.ports = dict(zip(("etcd", "peer", "api", "kcm", "scheduler", "kwok"), free_ports(6), strict=True))
        self.url = f"https://127.0.0.1:{self.ports['api']}"
        self.etcd_url = f"http://127.0.0.1:{self.ports['etcd']}"
        self.ca = Authority(self.pki, "ca")
        self.front_proxy_ca = Authority(self.pki, "front-proxy-ca")
        self.sa_key, self.sa_public = write_signing_keys(self.pki, "service-accounts")
        self.serving = self.ca.issue(
            "apiserver",
            "kube-apiserver",
            usage="server",
            hosts=["localhost", "kubernetes.default.svc", "127.0.0.1", "10.0.0.1"],
        )
        self.front_proxy = self.front_proxy_ca.issue("front-proxy", "front-proxy-client", usage="client")
        self.admin_kubeconfig = self._kubeconfig("admin", ["system:masters"])
        self.tls = ssl.create_default_context(cafile=str(self.ca.certificate))
        self.tls.load_cert_chain(self.pki / "admin.crt", self.pki / "admin.key")
        self.apiserver: Child | None = None

    def start(self, nodes: int, gpus_per_node: int) -> None:
        """Everything, in the order in which the parts need each other."""
        etcd = self._start_etcd()
        self.start_apiserver(etcd)
        followers = [self._start_controller_manager(), self._start_scheduler(), self._start_kwok()]
        for index in range(nodes):
            self.add_node(f"gpu-{index}", gpus_per_node)
        self.add_node("cpu-0", 0)
        with ThreadPoolExecutor(len(followers)) as pool:
            list(pool.map(lambda follower: follower(), followers))
        eventually(
            self._usable, timeout_s=READY_TIMEOUT_S, every_s=0.05, what="nodes Ready and a default service account"
        )

    def start_apiserver(self, *needed: Callable[[], None]) -> None:
        """Start the API server, then wait for what it needs and for itself."""
        authentication = {
            "client-ca-file": self.ca.certificate,
            "anonymous-auth": "false",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self.sa_public,
            "service-account-signing-key-file": self.sa_key,
            "requestheader-client-ca-file": self.front_proxy_ca.certificate,
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "proxy-client-cert-file": self.front_proxy.certificate,
            "proxy-client-key-file": self.front_proxy.key,
        }
        options = {
            "etcd-servers": self.etcd_url,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "endpoint-reconciler-type": "none",  # it would publish 127.0.0.1, which validation forbids
            "secure-port": self.ports["api"],
            "tls-cert-file": self.serving.certificate,
            "tls-private-key-file": self.serving.key,
            **authentication,
            "authorization-mode": "Node,RBAC",
            # As clusters with GPUs do: a pod that asks for GPUs tolerates the taint of the GPU nodes.
            "enable-admission-plugins": "ExtendedResourceToleration",
            "allow-privileged": "true",
            "service-cluster-ip-range": "10.0.0.0/24",
            "enable-priority-and-fairness": "false",
            "max-requests-inflight": 0,
            "max-mutating-requests-inflight": 0,
            "v": 1,
        }
        binary = self.programs["kubernetes"] / "kube-apiserver"
        self.apiserver = self._start("kube-apiserver", [binary, *_flags(options), *self.apiserver_args])
        for wait in needed:
            wait()
        self.apiserver.wait_ready(lambda: self._request("GET", "/readyz")[0] == 200, READY_TIMEOUT_S)

    def stop_apiserver(self, *, kill: bool) -> None:
        if self.apiserver is not None:
            self.children.stop(self.apiserver, grace_s=0 if kill else 5)

    def add_node(self, name: str, gpus: int) -> None:
        """Register a fake node; the status is kept as given, so no device plugin is needed."""
        resources = {"cpu": "64", "memory": "512Gi", "pods": "250", **({GPU: str(gpus)} if gpus else {})}
        labels = {
            "type": "kwok",
            "kubernetes.io/hostname": name,
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/os": "linux",
            **({"nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": "NVIDIA-H200"} if gpus else {}),
        }
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": labels,
                "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
            },
            "spec": {"taints": [{"key": GPU, "value": "present", "effect": "NoSchedule"}] if gpus else []},
            "status": {
                "capacity": resources,
                "allocatable": resources,
                "nodeInfo": {"kubeletVersion": "fake", "operatingSystem": "linux", "architecture": "amd64"},
            },
        }
        status, body = self._request("POST", "/api/v1/nodes", node)
        if status != 201:
            raise ControlPlaneError(f"node {name} was refused: {body.decode(errors='replace')[:400]}")

    def _start_etcd(self) -> Callable[[], None]:
        peer = f"http://127.0.0.1:{self.ports['peer']}"
        options = {
            "name": "local",
            "data-dir": self.run_dir / "etcd",
            "listen-client-urls": self.etcd_url,
            "advertise-client-urls": self.etcd_url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"local={peer}",
            "log-level": "warn",
        }
        child = self._start("etcd", [self.programs["etcd"] / "etcd", *_flags(options), "--unsafe-no-fsync"])
        return lambda: child.wait_ready(lambda: fetch(f"{self.etcd_url}/health")[0] == 200, READY_TIMEOUT_S)

    def _start_controller_manager(self) -> Callable[[], None]:
        options = {
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self.sa_key,
            "root-ca-file": self.ca.certificate,
            "cluster-signing-cert-file": self.ca.certificate,
            "cluster-signing-key-file": self.ca.files.key,
        }
        extra = [*_flags(options), *self.controller_manager_args]
        return self._start_component("kube-controller-manager", "kcm", extra)

    def _start_scheduler(self) -> Callable[[], None]:
        return self._start_component("kube-scheduler", "scheduler", [])

    def _start_component(self, name: str, port: str, extra: Sequence[str]) -> Callable[[], None]:
        kubeconfig = self._kubeconfig(f"system:{name}", [])
        options = {
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "authorization-always-allow-paths": "/healthz,/readyz,/livez,/metrics",
            "bind-address": "127.0.0.1",
            "secure-port": self.ports[port],
            "cert-dir": self.run_dir / name,
            "leader-elect": "false",
            "kube-api-qps": 500,
            "kube-api-burst": 1000,
            "v": 1,
        }
        child = self._start(name, [self.programs["kubernetes"] / name, *_flags(options), *extra])
        # Their serving certificate is self-signed and new at each start; nothing but a health word is read.
        unverified = ssl._create_unverified_context()
        url = f"https://127.0.0.1:{self.ports[port]}/healthz"
        return lambda: child.wait_ready(lambda: fetch(url, context=unverified)[0] == 200, READY_TIMEOUT_S)

    def _start_kwok(self) -> Callable[[], None]:
        options = {
            "kubeconfig": self._kubeconfig("kwok", ["system:masters"]),
            "config": HERE / "kwok.yaml",
            "server-address": f"127.0.0.1:{self.ports['kwok']}",  # without it: all interfaces
            "node-ip": "127.0.0.1",
            "node-port": self.ports["kwok"],
        }
        child = self._start("kwok", [self.programs["kwok"] / "kwok", *_flags(options)])
        url = f"http://127.0.0.1:{self.ports['kwok']}/healthz"
        return lambda: child.wait_ready(lambda: fetch(url)[0] == 200, READY_TIMEOUT_S)

    def _start(self, name: str, argv: Sequence[str | Path]) -> Child:
        return self.children.start(name, argv, cwd=self.run_dir)

    def _usable(self) -> bool:
        nodes = json.loads(self._request("GET", "/api/v1/nodes")[1])["items"]
        conditions = [{c["type"]: c["status"] for c in node["status"].get("conditions", [])} for node in nodes]
        # The taint goes a moment after the node is Ready; before that nothing is scheduled.
        taints = [t["key"] for node in nodes for t in node["spec"].get("taints", []) if t["key"] != GPU]
        if taints or not all(c.get("Ready") == "True" for c in conditions):
            return False
        return self._request("GET", "/api/v1/namespaces/default/serviceaccounts/default")[0] == 200

    def _request(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        body = None if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json"}
        return fetch(f"{self.url}{path}", method=method, body=body, headers=headers, context=self.tls)

    def _kubeconfig(self, user: str, groups: Sequence[str]) -> Path:
        name = _file_name(user)
        pair = self.ca.issue(name, user, usage="client", organisations=groups)
        cluster = {"server": self.url, "certificate-authority-data": _base64(self.ca.certificate)}
        return _write_kubeconfig(
            self.run_dir / "kubeconfigs" / f"{name}.yaml", cluster, _client_certificate(pair.certificate, pair.key)
        )


def _flags(options: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def _text(manifest: Manifest | None) -> str | None:
    if manifest is None or isinstance(manifest, str):
        return manifest
    if isinstance(manifest, Mapping):
        return json.dumps(manifest)
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifest)})


def _file_name(user: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in user)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _client_certificate(certificate: Path, key: Path) -> dict[str, str]:
    return {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}


def _write_kubeconfig(path: Path, cluster: Mapping[str, Any], user: Mapping[str, str]) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bandkeeper",
        "contexts": [{"name": "bandkeeper", "context": {"cluster": "bandkeeper", "user": "bandkeeper"}}],
        "clusters": [{"name": "bandkeeper", "cluster": dict(cluster)}],
        "users": [{"name": "bandkeeper", "user": dict(user)}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path
