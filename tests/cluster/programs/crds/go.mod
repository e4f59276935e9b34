// Pins the modules that carry the CRDs of KServe, KubeRay and LeaderWorkerSet. Nothing is built: no `go mod tidy` here.
module bandkeeper.dev/tests/cluster/programs/crds

go 1.26.0

require (
	github.com/kserve/kserve v0.20.0
	github.com/ray-project/kuberay/ray-operator v1.6.2
	sigs.k8s.io/lws v0.9.0
)
