"""A process that competes for a lease, for tests that kill it: python -m tests.kube_elector KUBECONFIG NAMESPACE ID"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.lease import LeaseElector


async def compete(kubeconfig: str, namespace: str, name: str) -> None:
    async with await KubeClient.connect(kubeconfig) as client:
        elector = LeaseElector(client, namespace=namespace, name="bandkeeper", identity=name)
        task = asyncio.create_task(elector.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    asyncio.run(compete(*sys.argv[1:]))
