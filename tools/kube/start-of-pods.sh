#!/bin/sh
# One contender of tools/pod-start, on a cluster that is up: margay or ptp.
. tools/kube/lib.sh

contender=$1
node_run=$KUBE_STATE/n1/run
plugins=$KUBE_STATE/n1/opt/cni/bin

# n pods by the name of p-FROM, ... to p-TO, on n1.
pods_from_to() {
	seq "$1" "$2" | while read -r number; do
		cat <<-END
			---
			apiVersion: v1
			kind: Pod
			metadata: {name: p-$number, labels: {app: start}}
			spec:
			  nodeName: n1
			  terminationGracePeriodSeconds: 0
			  automountServiceAccountToken: false
			  containers:
			  - {name: main, image: "localhost/busybox:1", imagePullPolicy: Never, command: [sleep, "100000"]}
		END
	done | kubectl create -f - >/dev/null
}

# Each execution of a plugin is timed from outside, by a shell in its place that costs every contender the same.
time_plugin() {
	[ -e "$plugins/$1" ] || fail "no plugin $1"
	mkdir -p "$plugins/real"
	cp -L "$plugins/$1" "$plugins/real/$1"
	cat >"$work/wrapper" <<-END
		#!/bin/bash
		began=\$EPOCHREALTIME
		/opt/cni/bin/real/$1
		code=\$?
		ended=\$EPOCHREALTIME
		echo "\$CNI_COMMAND \$began \$ended \$CNI_ARGS" >>/run/plugin-times
		exit \$code
	END
	chmod +x "$work/wrapper"
	# By rename: what is being executed cannot be written.
	cp "$work/wrapper" "$plugins/.$1"
	mv "$plugins/.$1" "$plugins/$1"
}

# Whoever gets a route of its own on the node is pinged until the first answer: `ADDRESS SECONDS` in /run/pings.
watch_pings() {
	cat >"$node_run/watch-pings" <<-'END'
		answered() { ping -n -D -c 40 -i 0.005 -w 5 "$1" | sed -n "s/^\[\([0-9.]*\)\].*icmp_seq.*/$1 \1/p;T;q" >>/run/pings; }
		ip monitor route | while read -r to dev rest; do
			case $to/$dev in
			192.168.*.*/dev | 10.244.*.*/dev) case $to in */*) ;; *) answered "$to" & ;; esac ;;
			esac
		done
	END
	: >"$node_run/pings"
	"$KUBE" exec n1 sh /run/watch-pings &
	agents="$agents $!"
}
answered() { [ "$(wc -l <"$node_run/pings")" -ge "$1" ]; }

# Kubelet says when it sees a pod if it is asked to be that talkative.
talkative() { printf 2 | kubectl replace --raw "/api/v1/nodes/n1/proxy/debug/flags/v" -f - >/dev/null; }
today=$(date +%F)
seen_by_kubelet() {
	sed -n 's/^I[0-9]* \([0-9:.]*\) .*SyncLoop (ADD, "api"): "\(.*\)".*/\1 \2/p' "$KUBE_STATE/n1/log/kubelet.log" | while read -r time pods; do
		seconds=$(date -d "$today ${time%.*}" +%s).${time#*.}
		echo "$pods" | tr ',' '\n' | sed -n "s/^[\" ]*\(p-[0-9]*\)_.*/\1 $seconds/p"
	done
}

# p50 and p99 of numbers, one a line, in milliseconds.
percentiles() { sort -n | awk '{ all[NR] = $1 } function at(share) { i = int(NR * share); if (i < NR * share) i++; return all[i] }
	END { if (NR) printf "%.0f / %.0f of %d\n", at(0.5), at(0.99), NR; else print "none" }'; }

# report WHAT: of the pods that are there now.
report() {
	kubectl get pods -l app=start -o 'jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}' >"$work/addresses"
	seen_by_kubelet >"$work/seen-by-kubelet"
	awk 'FILENAME ~ /seen-by-kubelet$/ { if (!($1 in seen)) seen[$1] = $2 }
		FILENAME ~ /pings$/ { if (!($1 in ping)) ping[$1] = $2 }
		FILENAME ~ /addresses$/ && ($1 in seen) && ($2 in ping) { print $1, seen[$1], ping[$2], (ping[$2] - seen[$1]) * 1000 }' \
		"$work/seen-by-kubelet" "$node_run/pings" "$work/addresses" >"$work/starts"
	echo "$contender, $1: from seen to pinged, p50 / p99, ms: $(cut -d ' ' -f 4 "$work/starts" | percentiles)"
	awk '{ if (!first || $2 < first) first = $2; if ($3 > last) last = $3 } END { printf "    first seen to last pinged: %.2f s\n", last - first }' "$work/starts"
	awk '$1 == "ADD" { match($0, /K8S_POD_NAME=p-[0-9]+/); name = substr($0, RSTART, RLENGTH); sum[name] += ($3 - $2) * 1000 }
		END { for (name in sum) if (name) print sum[name] }' "$node_run/plugin-times" >"$work/adds"
	echo "    of it the plugins' ADD, ms: $(percentiles <"$work/adds")"
}
no_pods() { [ -z "$(kubectl get pods -l app=start -o name)" ]; }
forget() {
	kubectl delete pods -l app=start --grace-period=0 --force >/dev/null 2>&1
	within 120 no_pods
	# Their sandboxes go after them.
	gone() { [ "$("$KUBE" exec n1 sh -c 'grep -lz "^HOSTNAME=p-" /proc/[0-9]*/environ 2>/dev/null' | wc -l)" = 0 ]; }
	within 120 gone
	: >"$node_run/pings"
	: >"$node_run/plugin-times"
	: >"$KUBE_STATE/n1/log/kubelet.log"
}

if [ "$contender" = margay ]; then
	echo "image: $(IMAGE='' tools/image "$work/image.tar" "$MARGAY")"
	"$KUBE" load "$work/image.tar" >/dev/null
	manifest | kubectl apply -f - >/dev/null
	kubectl wait --for condition=ready --timeout 60s node/n1 node/n2 >/dev/null
	rolled_out 60s >/dev/null
	within 60 kubectl get ippool default-ipv4-ippool
	time_plugin calico
else
	time_plugin ptp
	time_plugin portmap
fi
: >"$node_run/plugin-times"
talkative
watch_pings
# The first pods find everything cold.
pods_from_to 9001 9002
within 60 answered 2
forget

for number in $(seq "$ROUNDS"); do
	pods_from_to "$number" "$number"
	within 60 answered "$number"
done
kubectl wait --for condition=ready --timeout 120s pod -l app=start >/dev/null
report "one at a time"
forget
pods_from_to 1 "$BURST"
within 300 answered "$BURST"
kubectl wait --for condition=ready --timeout 300s pod -l app=start >/dev/null
report "$BURST at once"

[ "$contender" = margay ] || exit 0
resident() { "$KUBE" exec "$1" sh -c 'grep -E "^(VmRSS|RssAnon)" /proc/$(pgrep -o -f "margay agent")/status' | xargs; }
echo "agent with $BURST pods: $(resident n1); with none: $(resident n2)"
