//! What is applied.

pub const DB: &str = r#"
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  selector: role == "db"
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: role == "api"}, destination: {ports: [80]}}
  - {action: Deny, protocol: UDP}
"#;
pub const SECURITY: &str = r#"
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 10}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: security.shop}
spec:
  tier: security
  selector: projectcalico.org/namespace == "shop"
  types: [Ingress, Egress]
  ingress:
  - {action: Deny, ipVersion: 6, protocol: UDP, source: {selector: role == "web"}}
  - {action: Deny, protocol: TCP, source: {selector: role == "guest"}, destination: {notPorts: [81]}}
  - {action: Pass}
  egress:
  - {action: Deny, destination: {nets: [@OUTSIDE@]}}
  - {action: Pass}
"#;
pub const HOST: &str = r#"
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: guarded, labels: {host: guarded}}
spec: {node: @NODE@, interfaceName: ens33, expectedIPs: [@ADDRESS@]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: hosts}
spec:
  selector: host == "guarded"
  types: [Ingress]
  ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]
"#;
/// In place of the first one.
pub const WIDER: &str = r#"
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  selector: role in {"db", "api"}
  types: [Ingress, Egress]
  ingress:
  - {action: Allow, protocol: TCP, source: {namespaceSelector: 'projectcalico.org/name in {"shop", "other"}'}, destination: {ports: ["80:81"]}}
  egress:
  - {action: Allow, ipVersion: 4}
"#;
