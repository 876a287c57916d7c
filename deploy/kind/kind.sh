#!/bin/sh
# Sentry on a laptop: a cluster of kind with the agent, Prometheus and Grafana.
#
#   deploy/kind/kind.sh         make it, deploy, and show it until Ctrl-C
#   deploy/kind/kind.sh down    remove it
#
# It takes docker, kind and kubectl. UNTRIED: no container engine ran where this was written; it was only read
# by shellcheck and run with stand-ins for the three programs.
#
# kind's nodes are containers that share the host's kernel. They are privileged, so that eBPF in them is that of the
# host: its type information and its cgroups' numbers are the same, and nothing of the host has to be mounted into them.
# The agent sees cgroups beneath the node's alone; those of the host's other processes have no name.
set -eu

cluster=sentry
image=sentry:latest
context=kind-$cluster
root=$(cd "$(dirname "$0")/../.." && pwd)

stop() {
	echo "kind.sh: $*" >&2
	exit 1
}

for program in docker kind kubectl; do
	command -v $program >/dev/null || stop "$program is missing; docs/kubernetes.md says what is needed"
done

exists() {
	kind get clusters 2>/dev/null | grep -qx $cluster
}

case ${1-up} in
up) ;;
down)
	kind delete cluster --name $cluster
	exit
	;;
*)
	stop "usage: kind.sh [up|down]"
	;;
esac

docker build --tag $image "$root"
exists || kind create cluster --name $cluster --wait 2m
kind load docker-image $image --name $cluster
kubectl --context $context apply --kustomize "$root/deploy/kubernetes/overlays/kind"
# An image of the same name that was built anew does not start by itself.
kubectl --context $context --namespace sentry rollout restart daemonset/sentry
for workload in daemonset/sentry deployment/prometheus deployment/grafana; do
	kubectl --context $context --namespace sentry rollout status --timeout 5m $workload
done

forwards=
end() {
	# shellcheck disable=SC2086 # a list of numbers
	[ -z "$forwards" ] || kill $forwards 2>/dev/null || :
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

forward() {
	kubectl --context $context --namespace sentry port-forward "$1" "$2" >/dev/null &
	forwards="$forwards $!"
}
forward daemonset/sentry 9763
forward service/prometheus 9090
forward service/grafana 3000

cat <<END

  the agent    http://127.0.0.1:9763/
  Prometheus   http://127.0.0.1:9090/
  Grafana      http://127.0.0.1:3000/

Ctrl-C ends the forwarding; the cluster stays until "$0 down".
END
# macOS has the second.
for program in xdg-open open; do
	if command -v $program >/dev/null; then
		sleep 2
		$program http://127.0.0.1:3000/ >/dev/null 2>&1 || :
		break
	fi
done
wait
