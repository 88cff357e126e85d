# What stories about outages share. Sourced after lib.sh by those that have an installed cluster or pods that go meanwhile.

# readiness NODE PORT: answer and code, as kubelet gets them: the agent's port is 9099, the controllers' 9097.
readiness() { "$KUBE" exec "$1" curl -s -m 15 -w '%{http_code}\n' "http://127.0.0.1:$2/readiness"; }
says() { readiness "$1" "$2" | grep -q "$3"; }
is_ready() { readiness "$1" "$2" | grep -qx 200; }
# restarts: of each container of ours on a node, by what kubelet counts: NODE NAME COUNT.
restarts() {
	kubectl -n margay-system get pods -l 'app.kubernetes.io/name in (margay-agent, margay-controllers)' -o json |
		jq -r '.items[] | .spec.nodeName as $node | (.status.initContainerStatuses // []) + .status.containerStatuses | .[] | "\($node) \(.name) \(.restartCount)"' | sort
}
restarts_are() { restarts | cmp -s - "$1"; }
agent_of() { "$KUBE" exec "$1" pgrep -o -f 'margay agent$'; }
leader() { kubectl -n margay-system get pod -l app.kubernetes.io/name=margay-controllers -o 'jsonpath={.items[0].spec.nodeName}'; }

# pods_on_both COUNT: still1 on n1, still2 and locked (which nobody reaches) on n2, and so many of group a on n1 and of group b on
# n2. Sets the addresses still1, still2 and locked, and `inside`, a process of still1.
pods_on_both() {
	pod still1 n1
	pod still2 n2
	pod locked n2
	group a n1 "$1"
	group b n2 "$1"
	kubectl wait --for condition=ready --timeout 60s pod/still1 pod/still2 pod/locked >/dev/null
	whole a && whole b
	kubectl apply -f - <<-END
		apiVersion: networking.k8s.io/v1
		kind: NetworkPolicy
		metadata: {name: closed}
		spec: {podSelector: {matchLabels: {app: locked}}, policyTypes: [Ingress]}
	END
	still1=$(address still1) still2=$(address still2) locked=$(address locked)
	inside=$(process_of n1 "$still1")
	within 10 no_ping still1 "$locked"
	within 10 pings still1 "$still2"
	accounts_within 30 n1 n2
}
# lose_pods NODE KEPT: the runtime loses all sleeping pods of a node but the one with this address.
lose_pods() {
	# shellcheck disable=SC2016 # expanded in the node
	"$KUBE" exec "$1" sh -c 'for p in /proc/[0-9]*; do
		[ "$(tr "\0" " " <$p/cmdline 2>/dev/null)" != "sleep 100000 " ] || nsenter -t "${p#/proc/}" -n ip -4 -o address show dev eth0 | grep -q "inet $1/" ||
			kill -KILL "$(awk "/^PPid/{print \$2}" "$p/status")"
	done' - "$2"
}
# lose_pod NODE ADDRESS: the one with this address.
lose_pod() {
	process=$(process_of "$1" "$2")
	[ -n "$process" ] || fail "no pod of $1 has $2"
	# shellcheck disable=SC2016 # expanded in the node
	"$KUBE" exec "$1" sh -c 'kill -KILL "$(awk "/^PPid/{print \$2}" "/proc/$1/status")"' - "$process"
}
# untouched NODE ADDRESS FILE: the ping has ended and lost nothing. closed NODE ADDRESS FILE: it got no answer at all.
untouched() {
	lost=$(end_ping "$@")
	tail -n 2 "$3" | head -n 1
	[ "$lost" = 0 ] || fail "$lost packets to $2 lost: $(tail -n 2 "$3")"
}
closed() {
	# It may have noticed that the host is unreachable, and ended.
	end_ping "$@" >/dev/null
	tail -n 2 "$3" | head -n 1
	grep -q ' 0 received' "$3" || fail "policy was open for $2: $(tail -n 2 "$3")"
}
