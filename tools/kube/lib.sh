# What the stories on real clusters share. Sourced by tools/test-kube's stories, which have KUBE (the runner of clusters),
# MARGAY (our program), KUBECONFIG and KUBE_STATE. A story fails by `fail`; what it made is taken down with its cluster.
set -eu

export DATASTORE_TYPE=kubernetes
work=$(mktemp -d)
agents=""

# A story may define `diagnose` to show what helps when it failed.
finish() {
	status=$?
	for agent in $agents; do kill "$agent" 2>/dev/null || true; done
	if [ "$status" != 0 ]; then
		for log in "$KUBE_STATE"/n?/run/margay-agent.log; do
			[ ! -s "$log" ] || { echo "--- $log" >&2 && tail -n 20 "$log" >&2; }
		done
		if command -v diagnose >/dev/null; then diagnose >&2 || true; fi
	fi
	rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

say() { echo "== $*"; }
fail() {
	echo "FAILED: $*" >&2
	exit 1
}

# Until a command succeeds, at most a number of seconds of a machine that has nothing else to do: one that is busy has PATIENCE times as many.
within() {
	end=$(($(date +%s) + $1 * ${PATIENCE:-2}))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(date +%s)" -lt "$end" ] || fail "not within time: $*"
		sleep 0.2
	done
}

# pod NAME NODE: one that sleeps.
pod() {
	kubectl apply -f - <<-END
		apiVersion: v1
		kind: Pod
		metadata: {name: $1, labels: {app: $1}}
		spec:
		  nodeName: $2
		  terminationGracePeriodSeconds: 0
		  containers:
		  - {name: main, image: "localhost/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"]}
	END
}
pings() { kubectl exec "$1" -- ping -c 1 -W 1 "$2"; }
no_ping() { ! pings "$@"; }
address() { kubectl get pod "$1" -o 'jsonpath={.status.podIP}'; }

# serve POD: it answers HTTP at port 8080. opens POD ADDRESS [PORT]: a pod gets that answer.
serve() { kubectl exec "$1" -- sh -c 'mkdir /tmp/www && echo open >/tmp/www/index.html && httpd -p 8080 -h /tmp/www'; }
opens() { kubectl exec "$1" -- timeout 3 wget -q -O - "http://$2:${3:-8080}/" | grep -q open; }
no_open() { ! opens "$@"; }
# may ACCOUNT VERB RESOURCE [FLAG...]: whether an account of ours may.
may() {
	account=$1
	shift
	[ "$(kubectl auth can-i --as "system:serviceaccount:margay-system:$account" "$@" 2>/dev/null)" = yes ]
}
may_not() { ! may "$@" || fail "granted: $*"; }

# One process of the first sleeping pod on a node, to enter its network from there (kubectl needs an API server).
inside() {
	"$KUBE" exec "$1" sh -c 'for p in /proc/[0-9]*; do [ "$(tr "\0" " " <$p/cmdline 2>/dev/null)" != "sleep 100000 " ] || echo "${p#/proc/}"; done' | head -n 1
}

# What a person would type, and what it prints; then what there must be in it (extended regular expressions), and its columns.
see() {
	echo "  \$ $*"
	"$@" >"$work/seen" 2>&1 || fail "$*: $(cat "$work/seen")"
	sed 's/^/    /' "$work/seen"
}
saw() { grep -qE -- "$1" "$work/seen" || fail "$1 is not in: $(cat "$work/seen")"; }
columns() { head -n 1 "$work/seen" | xargs; }

# on NODE COMMAND...: on a node.
on() { "$KUBE" exec "$@"; }
# pid_in NODE POD: a process of that pod, as the node counts. in_pod NODE POD COMMAND...: a program of the node in the pod's network.
pid_in() { on "$1" sh -c "grep -lzx HOSTNAME=$2 /proc/[0-9]*/environ 2>/dev/null" | head -n 1 | cut -d / -f 3; }
in_pod() {
	process=$(pid_in "$1" "$2")
	[ -n "$process" ] || fail "no process of pod $2 on $1"
	node=$1
	shift 2
	on "$node" nsenter -t "$process" -n "$@"
}

# capture NODE NAME ARGUMENTS...: tcpdump on a node, in the background, into $work/NAME; it has begun when this returns.
# captured NAME: it has ended (-c), and this is what was seen.
capture() {
	node=$1 to=$work/$2
	shift 2
	on "$node" timeout 20 tcpdump -nl "$@" >"$to" 2>"$to.err" &
	dump=$!
	within 10 grep -q '^listening on\|, link-type' "$to.err"
}
captured() {
	wait "$dump" || fail "tcpdump saw too little: $(cat "$work/$1" "$work/$1.err")"
	cp "$work/$1" "$work/seen"
	sed 's/^/    /' "$work/seen"
}

# group NAME NODE COUNT: a Deployment of pods that sleep.
group() {
	kubectl apply -f - <<-END
		apiVersion: apps/v1
		kind: Deployment
		metadata: {name: $1}
		spec:
		  replicas: $3
		  selector: {matchLabels: {group: $1}}
		  template:
		    metadata: {labels: {group: $1}}
		    spec:
		      nodeName: $2
		      terminationGracePeriodSeconds: 0
		      containers:
		      - {name: main, image: "localhost/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"]}
	END
}
whole() { kubectl rollout status "deployment/$1" --timeout "${2:-90s}"; }
# process_of NODE ADDRESS: a process of the pod with this address.
process_of() {
	# shellcheck disable=SC2016 # expanded in the node
	"$KUBE" exec "$1" sh -c 'for p in /proc/[0-9]*; do
		[ "$(tr "\0" " " <$p/cmdline 2>/dev/null)" != "sleep 100000 " ] ||
			! nsenter -t "${p#/proc/}" -n ip -4 -o address show dev eth0 | grep -q "inet $1/" || { echo "${p#/proc/}"; break; }
	done' - "$2"
}
# From a process's network on a node; ends by itself when it is told SIGINT, and then prints what was lost.
ping_for_ever() { "$KUBE" exec "$1" nsenter -t "$2" -n ping -i 0.1 -W 1 "$3" >"$4" & }
# end_ping NODE ADDRESS FILE: how many packets were lost.
end_ping() {
	"$KUBE" exec "$1" pkill -INT -f "ping -i 0.1 -W 1 $2\$" || true
	within 5 grep -q 'packets transmitted' "$3"
	sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) received.*/\1 \2/p' "$3" | { read -r sent got && echo $((sent - got)); }
}

# Agents as processes of their nodes, with an account that has no more than an agent needs.
agent_account() {
	domain=${GROUP%/*}
	kubectl apply -f - <<-END
		apiVersion: v1
		kind: ServiceAccount
		metadata: {name: margay-agent, namespace: kube-system}
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRole
		metadata: {name: margay-agent}
		rules:
		- {apiGroups: [""], resources: [nodes, pods, namespaces, serviceaccounts], verbs: [get, list, watch]}
		- {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [get, list, watch]}
		- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
		- {apiGroups: [policy.networking.k8s.io], resources: [clusternetworkpolicies], verbs: [get, list, watch]}
		- {apiGroups: [$domain], resources: ["*"], verbs: [get, list, watch]}
		- {apiGroups: [""], resources: [nodes/status, pods/status], verbs: [patch]}
		- {apiGroups: [$domain], resources: [ipamblocks, blockaffinities, ipamhandles], verbs: [create, update, delete]}
		- {apiGroups: [$domain], resources: [clusterinformations], verbs: [create]}
		- {apiGroups: [$domain], resources: [caliconodestatuses, caliconodestatuses/status], verbs: [update]}
		- {apiGroups: [$domain], resources: [networkpolicies/status, globalnetworkpolicies/status, hostendpoints/status], verbs: [update]}
		- {apiGroups: [""], resources: [events], verbs: [create, get, patch]}
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRoleBinding
		metadata: {name: margay-agent}
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: margay-agent}
		subjects: [{kind: ServiceAccount, name: margay-agent, namespace: kube-system}]
	END
	within 20 token_of
}
token_of() { kubectl -n kube-system create token margay-agent --duration 1h; }
# What kubelet would mount into an agent's pod on this node.
mount_token() {
	secrets=$KUBE_STATE/$1/run/secrets/kubernetes.io/serviceaccount
	mkdir -p "$secrets"
	token_of >"$secrets/token"
	cp "$KUBE_CA" "$secrets/ca.crt"
	printf kube-system >"$secrets/namespace"
}
# start_agent NODE [VARIABLE=VALUE]...
start_agent() {
	node=$1
	shift
	"$KUBE" exec "$node" env -u KUBECONFIG HOME=/none KUBERNETES_SERVICE_HOST=10.210.0.10 KUBERNETES_SERVICE_PORT=6443 "$@" "$MARGAY" agent >>"$KUBE_STATE/$node/run/margay-agent.log" 2>&1 &
	agents="$agents $!"
}
# SIGTERM to the agent itself, and until it is gone.
stop_agent() {
	"$KUBE" exec "$1" sh -c 'pid=$(pgrep -o -f "margay agent"); kill "$pid"; while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done'
}
# network_is NODE REASON: what the Node's condition NetworkUnavailable says.
network_is() { [ "$(kubectl get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="NetworkUnavailable")].reason}')" = "$2" ]; }
agent_ready() { "$KUBE" exec "$1" "$MARGAY" node status | grep -q 'The node is ready'; }

# Our definitions and one pool, and on these nodes the plugin and an agent each.
agents_on() {
	"$MARGAY" crds --no-rules --group "$GROUP" | kubectl apply -f - >/dev/null
	kubectl wait --for condition=established --timeout 60s crd --all >/dev/null
	"$MARGAY" apply -f - <<-END
		apiVersion: projectcalico.org/v3
		kind: IPPool
		metadata: {name: default-ipv4-ippool}
		spec: {cidr: 192.168.0.0/16, ipipMode: Always, natOutgoing: true}
	END
	agent_account
	for node in "$@"; do
		mount_token "$node"
		"$KUBE" exec "$node" "$MARGAY" cni install --no-portmap >/dev/null
		start_agent "$node"
	done
	for node in "$@"; do within 60 agent_ready "$node"; done
	for node in "$@"; do kubectl wait --for condition=ready --timeout 60s "node/$node" >/dev/null; done
}

# kill_control NAME: ends kube-apiserver or etcd as a crash does. start_control NAME: starts it again as it was.
kill_control() {
	pid=$(cut -d " " -f 1 "$KUBE_STATE/pids/$1")
	cp "/proc/$pid/cmdline" "$KUBE_STATE/$1.cmdline"
	kill -KILL "$pid"
	while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}
start_control() {
	# shellcheck disable=SC2016 # bash expands it
	setsid bash -c 'mapfile -d "" -t command <"$1"; exec nsenter "--net=/run/netns/$2" -- "${command[@]}"' - \
		"$KUBE_STATE/$1.cmdline" "$KUBE_NAME-cp" </dev/null >>"$KUBE_STATE/log/$1.log" 2>&1 &
	# As the runner knows its processes: by pid and start time.
	echo "$! $(sed 's/.*) //' "/proc/$!/stat" | cut -d " " -f 20)" >"$KUBE_STATE/pids/$1"
}
api_answers() { kubectl get --raw /readyz; }

# Everything by one manifest. API server 10.210.0.10: no kube-proxy is needed to begin with. Kubernetes 1.20 knows no rules in CEL.
manifest() { "$MARGAY" install --crds no-rules --kubernetes-service-host 10.210.0.10 "$@"; }
rolled_out() { kubectl -n margay-system rollout status daemonset/margay-agent --timeout "$1"; }
# load_image [NAME]: the program as an image, on all nodes.
load_image() {
	# Symbols are most of a debug build.
	[ -s "$work/margay" ] || strip -o "$work/margay" "$MARGAY"
	IMAGE=${1:-} tools/image "$work/image.tar" "$work/margay" >/dev/null
	"$KUBE" load "$work/image.tar" >/dev/null
	rm "$work/image.tar"
}
# install_all: by the manifest, until agents, controllers and the pool are there.
install_all() {
	load_image
	manifest | kubectl apply -f - >/dev/null
	kubectl wait --for condition=ready --timeout 60s node/n1 node/n2
	rolled_out 60s
	kubectl -n margay-system rollout status deployment/margay-controllers --timeout 60s
	within 60 kubectl get ippool default-ipv4-ippool
}
# asked FROM: account, verb, resource and where from of each request after so many lines of $AUDIT. A watch counts when it begins.
asked() {
	tail -n "+$(($1 + 1))" "$AUDIT" | jq -r 'select(.stage == (if .verb == "watch" then "ResponseStarted" else "ResponseComplete" end))
		| "\(.user.username | split(":") | last) \(.verb) \(.objectRef.resource // .requestURI) \(.sourceIPs[0])"'
}
show_installed() {
	kubectl -n margay-system get pods -o wide || true
	kubectl -n margay-system logs --prefix --tail 20 --all-containers -l app.kubernetes.io/part-of=margay || true
}
