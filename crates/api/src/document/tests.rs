use proptest::prelude::*;

use super::*;

/// Reads `text` and compares the problems, one a line; none means that it reads.
#[track_caller]
fn check(text: &str, wanted: &[&str]) {
    let found: Vec<String> = match read("f.yaml", text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(found, wanted, "in\n{text}");
}

#[track_caller]
fn names(text: &str) -> Vec<String> {
    let resources = read("f.yaml", text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    resources.iter().map(|resource| resource.key().to_string()).collect()
}

const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\nspec: {cidr: 10.0.0.0/16}\n";

#[test]
fn a_file_holds_several_documents_and_lists() {
    let text = format!(
        "# a comment\n---\n{POOL}---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: projectcalico.org/v3\n  kind: \
         ClusterInformation\n  metadata:\n    name: default\n    creationTimestamp: null\n---\napiVersion: \
         projectcalico.org/v3\nkind: IPPoolList\nmetadata: {{resourceVersion: '1'}}\nitems:\n- metadata: {{name: b}}\n  \
         spec: {{cidr: 10.1.0.0/16}}\n"
    );
    assert_eq!(names(&text), ["IPPool(a)", "ClusterInformation(default)", "IPPool(b)"]);
}

#[test]
fn json_reads_like_yaml() {
    let json = r#"{"apiVersion": "projectcalico.org/v3", "kind": "IPPool",
        "metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/16"}}"#;
    assert_eq!(names(json), ["IPPool(a)"]);
    assert_eq!(names(&format!("{json}\n\t{json}")), ["IPPool(a)", "IPPool(a)"]);
    assert_eq!(
        names("{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: a}, spec: {cidr: 10.0.0.0/16}}").len(),
        1
    );
}

#[test]
fn nothing_is_no_problem() {
    for text in ["", "\n", "---\n", "# only a comment\n", "---\n---\n"] {
        check(text, &[]);
    }
}

#[test]
fn every_problem_of_every_document_comes_at_once() {
    check(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\nspec:\n  cidr: 10.0.0.0/33\n  blocksize: \
         26\n  natOutgoing: maybe\n  ipipMode: always\n  disabled: 3\n---\napiVersion: v1\nkind: IPPool\nmetadata: {name: \
         5}\nspec: {}\n",
        &[
            "f.yaml, document 1 (IPPool a): spec.blocksize: no such field; did you mean `blockSize`?",
            "f.yaml, document 1 (IPPool a): spec.cidr: `10.0.0.0/33` must be an address range like 10.0.0.0/16 or fd00::/64",
            "f.yaml, document 1 (IPPool a): spec.disabled: `3` must be true or false",
            "f.yaml, document 1 (IPPool a): spec.ipipMode: `always` must be one of Never, Always, CrossSubnet; did you mean `Always`?",
            "f.yaml, document 1 (IPPool a): spec.natOutgoing: `maybe` must be true or false",
            "f.yaml, document 2 (IPPool): apiVersion: `v1` must be projectcalico.org/v3",
            "f.yaml, document 2 (IPPool): metadata.name: `5` must be text: put it in quotes",
            "f.yaml, document 2 (IPPool): spec.cidr: is required",
        ],
    );
}

#[test]
fn a_kind_must_be_there_and_be_known() {
    let one_of = format!("one of {}", Kind::ALL.map(Kind::name).join(", "));
    check(
        "apiVersion: projectcalico.org/v3\nmetadata: {name: a}\n",
        &[&format!("f.yaml, document 1 (a): kind: is required: {one_of}")],
    );
    check(
        "apiVersion: projectcalico.org/v3\nkind: IpPool\n",
        &["f.yaml, document 1 (IpPool): kind: `IpPool` is no known kind; did you mean `IPPool`?"],
    );
    check(
        "apiVersion: projectcalico.org/v3\nkind: Deployment\n",
        &[&format!(
            "f.yaml, document 1 (Deployment): kind: `Deployment` is no known kind; {one_of}"
        )],
    );
    check(
        "- 1\n",
        &["f.yaml, document 1: `[1]` must be a resource: a mapping with apiVersion and kind"],
    );
}

#[test]
fn a_key_that_occurs_twice_is_a_problem_in_yaml_and_json() {
    let wanted = ["f.yaml, document 1 (IPPool a): spec.cidr: occurs more than once"];
    check(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\nspec:\n  cidr: 10.0.0.0/16\n  cidr: 10.1.0.0/16\n",
        &wanted,
    );
    check(
        r#"{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"a"},
            "spec":{"cidr":"10.0.0.0/16","cidr":"10.0.0.0/16"}}"#,
        &wanted,
    );
}

#[test]
fn items_of_a_list_are_named_by_their_place() {
    check(
        "apiVersion: projectcalico.org/v3\nkind: IPPoolList\nitems:\n- metadata: {name: a}\n  spec: {cidr: 1}\n- kind: Node\n  metadata: {name: b}\n",
        &[
            "f.yaml, document 1 (a): items[0].spec.cidr: `1` must be text: put it in quotes",
            "f.yaml, document 1 (Node b): items[1].kind: `Node` must be the kind of the list",
        ],
    );
}

#[test]
fn broken_text_is_a_problem_and_documents_before_it_are_judged() {
    let problems = read("f.yaml", "kind: IPPool\n---\na: [1\n").unwrap_err();
    let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown[0],
        "f.yaml, document 1 (IPPool): apiVersion: must be projectcalico.org/v3"
    );
    let last = shown.last().unwrap();
    assert!(last.starts_with("f.yaml, document 2: is not YAML: "), "{last}");
    let shown = read("f.json", "{\"kind\": ]").unwrap_err()[0].to_string();
    assert!(shown.contains("line 1 column 10"), "{shown}");
}

#[test]
fn what_was_written_reads_back() {
    let pools = read("f.yaml", POOL).unwrap();
    let yaml = to_yaml(&pools[0]);
    assert!(
        yaml.starts_with(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: a\nspec:\n  cidr: 10.0.0.0/16\n"
        ),
        "{yaml}"
    );
    assert_eq!(read("f.yaml", &yaml).unwrap(), pools);
    assert_eq!(read("f.json", &to_json(&pools[0]).to_string()).unwrap(), pools);
    assert_eq!(
        read("f.yaml", &list_to_yaml(Some(Kind::IPPool), &pools)).unwrap(),
        pools
    );
    assert_eq!(read("f.yaml", &list_to_yaml(None, &pools)).unwrap(), pools);
}

#[test]
fn awkward_texts_survive_yaml() {
    for text in [
        "yes",
        "no",
        "on",
        "1",
        "0777",
        "1:20",
        "2026-01-01",
        "null",
        "~",
        "a: b",
        "#x",
        "'",
        "\"",
        " x ",
        "x\ny",
        "é",
        "-",
        "",
        "0x1",
        "1e3",
    ] {
        let mut resource = read("f.yaml", POOL).unwrap().remove(0);
        resource
            .metadata_mut()
            .annotations
            .insert("a".to_owned(), text.to_owned());
        let yaml = to_yaml(&resource);
        assert_eq!(read("f.yaml", &yaml).unwrap(), [resource], "{yaml}");
    }
}

#[test]
fn what_an_api_server_adds_is_accepted() {
    check(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: a\n  uid: 6e1b\n  generation: 3\n  resourceVersion: '77'\n  \
         creationTimestamp: 2026-01-02T03:04:05Z\n  selfLink: /x\n  managedFields: [{manager: kubectl}]\n  ownerReferences:\n  - {apiVersion: \
         v1, kind: Node, name: n, uid: u, controller: true}\nspec: {cidr: 10.0.0.0/16}\n",
        &[],
    );
}

#[test]
fn a_byte_order_mark_and_windows_lines_are_no_problem() {
    assert_eq!(names(&format!("\u{feff}{}", POOL.replace('\n', "\r\n"))), ["IPPool(a)"]);
    assert_eq!(names("\u{feff}{\"apiVersion\": \"v1\", \"kind\": \"List\"}"), [""; 0]);
}

#[test]
fn no_document_has_more_than_a_hundred_problems() {
    let ports = "x, ".repeat(5_000);
    let text = format!(
        "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: default}}\nspec: {{kubeNodePortRanges: [{}]}}\n",
        ports.replace('x', "{}")
    );
    let problems = read("f.yaml", &text).unwrap_err();
    assert_eq!(problems.len(), 101);
    assert_eq!(
        problems[100].to_string(),
        "f.yaml, document 1 (FelixConfiguration default): has more problems than these 100"
    );
}

/// Anything that may stand in a document, with keys that some kind knows.
fn anything() -> impl Strategy<Value = Value> {
    const KEYS: [&str; 34] = [
        "cidr",
        "blockSize",
        "allowedUses",
        "ipipMode",
        "nodeSelector",
        "asNumber",
        "communities",
        "prefixAdvertisements",
        "bgp",
        "ipv4Address",
        "addresses",
        "address",
        "ingress",
        "action",
        "source",
        "nets",
        "ports",
        "icmp",
        "type",
        "allocations",
        "state",
        "healthPort",
        "logSeverityScreen",
        "bogus",
        "tier",
        "order",
        "selector",
        "types",
        "stagedAction",
        "podSelector",
        "matchLabels",
        "ipBlock",
        "expectedIPs",
        "services",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u8..70).prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "10.0.0.0/8",
            "fd00::1",
            "Allow",
            "has(a)",
            "80:90",
            "30s",
            "Egress",
            "Delete"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(prop::sample::select(KEYS.to_vec()), inner, 0..6).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_document_is_read_or_refused_with_reasons(kind in prop::sample::select(Kind::ALL.to_vec()), spec in anything()) {
        let text = serde_json::json!({
            "apiVersion": API_VERSION, "kind": kind.name(), "metadata": {"name": "default"}, "spec": spec,
        }).to_string();
        match read("-", &text) {
            Ok(resources) => {
                prop_assert_eq!(resources.len(), 1);
                prop_assert_eq!(resources[0].problems(), []);
                prop_assert_eq!(read("-", &to_yaml(&resources[0])), Ok(resources));
            }
            Err(problems) => prop_assert!(!problems.is_empty()),
        }
    }

    #[test]
    fn no_text_breaks_the_reader(text in "[ -~\n]{0,60}") {
        let _ = read("-", &text);
    }
}
