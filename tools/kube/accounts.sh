# Whether all that is kept about pods agrees: pods, their addresses inside, allocations, journals, devices. Sourced by stories.

# NAMESPACE/NAME ADDRESS NODE of all pods that have an address of the pool.
pods_with_addresses() {
	kubectl get pods -A -o 'jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.status.podIP} {.spec.nodeName}{"\n"}{end}' |
		grep ' 192\.168\.' | sort
}
# NAMESPACE/NAME of every pod that an allocation names, once for each.
allocated_pods() {
	kubectl get "ipamblocks.${GROUP%/*}" -o 'jsonpath={range .items[*].spec.attributes[*]}{.secondary.namespace}/{.secondary.pod}{"\n"}{end}' |
		grep -v '^/$' | sort
}
# NAMESPACE/NAME ADDRESS NODE as seen from inside of every pod of the node, by the processes that sleep there.
seen_inside() {
	# shellcheck disable=SC2016 # expanded in the node
	"$KUBE" exec "$1" sh -c 'for p in /proc/[0-9]*; do
		[ "$(tr "\0" " " <$p/cmdline 2>/dev/null)" != "sleep 100000 " ] ||
			echo "$(nsenter -t "${p#/proc/}" -n ip -4 -o address show dev eth0 2>/dev/null | sed "s/.*inet \([0-9.]*\).*/\1/")"
	done' | sort
}
journalled() { find "$KUBE_STATE/$1/overlay/var/lib/upper/margay/cni/$2" -name '*.json' 2>/dev/null | wc -l; }
# Devices of pods on a node, and devices that its packet filter knows.
devices() { "$KUBE" exec "$1" ip -o link | grep -c ': cali' || true; }
filtered() { "$KUBE" exec "$1" nft list table inet calico | grep -o 'cali[0-9a-f]\{11\}' | sort -u | wc -l; }

# accounts NODE...: fails with the first thing that does not agree.
accounts() {
	pods_with_addresses >"$work/pods"
	cut -d " " -f 2 "$work/pods" | sort | uniq -d >"$work/twice"
	[ ! -s "$work/twice" ] || { echo "two pods have $(cat "$work/twice")" && return 1; }
	cut -d " " -f 1 "$work/pods" >"$work/names"
	allocated_pods >"$work/allocated"
	cmp -s "$work/names" "$work/allocated" || { echo "pods and allocations differ:" && diff "$work/names" "$work/allocated"; return 1; }
	[ "$(kubectl get "ipamhandles.${GROUP%/*}" -o name | grep -c k8s-pod-network)" = "$(wc -l <"$work/names")" ] || { echo "handles differ from pods" && return 1; }
	for node in "$@"; do
		grep " $node\$" "$work/pods" | cut -d " " -f 2 | sort >"$work/here"
		count=$(wc -l <"$work/here")
		seen_inside "$node" >"$work/inside"
		cmp -s "$work/here" "$work/inside" || { echo "$node: addresses by the API server and inside differ:" && diff "$work/here" "$work/inside"; return 1; }
		[ "$(journalled "$node" endpoints)" = "$count" ] || { echo "$node: $count pods, journal has $(journalled "$node" endpoints)" && return 1; }
		[ "$(journalled "$node" pending-delete)" = 0 ] || { echo "$node: deletions are still open" && return 1; }
		[ "$(devices "$node")" = "$count" ] || { echo "$node: $count pods, $(devices "$node") devices" && return 1; }
		[ "$(filtered "$node")" -le "$count" ] || { echo "$node: $count pods, $(filtered "$node") devices in nf_tables" && return 1; }
	done
}
# Until they agree, at most so many seconds.
accounts_within() {
	end=$(($(date +%s) + $1))
	shift
	until accounts "$@" >"$work/differs"; do
		[ "$(date +%s)" -lt "$end" ] || fail "$(cat "$work/differs")"
		sleep 1
	done
}

# controllers_on NODE: as a process of it, with little patience for leaked addresses.
controllers_on() {
	"$MARGAY" apply -f - <<-END
		apiVersion: projectcalico.org/v3
		kind: KubeControllersConfiguration
		metadata: {name: default}
		spec: {controllers: {node: {leakGracePeriod: 20s}}}
	END
	"$KUBE" exec "$1" "$MARGAY" controllers --host 127.0.0.1 --lease kube-system/margay-controllers >>"$KUBE_STATE/$1/run/margay-controllers.log" 2>&1 &
	agents="$agents $!"
}
