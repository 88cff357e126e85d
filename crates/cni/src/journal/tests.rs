use super::*;

fn journal() -> (tempfile::TempDir, Journal) {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(dir.path().join("state"));
    (dir, journal)
}

pub(super) fn endpoint(container: &str) -> Endpoint {
    Endpoint {
        phase: Phase::Intent,
        container_id: container.into(),
        ifname: "eth0".into(),
        network: "net".into(),
        ipam_only: false,
        handle: format!("net.{container}"),
        addresses: Vec::new(),
        host_device: Some("cali0".into()),
        outside_ipam: false,
        bandwidth: None,
        port_mappings: Vec::new(),
        displaced: false,
        mac: String::new(),
        mtu: 1480,
        ip_forward: false,
        netns: "/run/netns/x".into(),
        netns_id: None,
        wep_namespace: "default".into(),
        wep_name: "n1-k8s-p-eth0".into(),
        args: Args::default(),
        alias: String::new(),
        adopted: false,
        known: None,
    }
}

pub(crate) fn attached(container: &str) -> Endpoint {
    Endpoint {
        phase: Phase::Attached,
        addresses: vec![[10, 0, 0, 1].into()],
        ..endpoint(container)
    }
}

fn pending(container: &str) -> Pending {
    Pending {
        container_id: container.into(),
        ifname: "eth0".into(),
        network: "net".into(),
        ipam_only: false,
        netns: None,
        args: Args::default(),
    }
}

#[test]
fn the_last_state_counts() {
    let (_dir, journal) = journal();
    let id = endpoint("a").id();
    assert_eq!(journal.endpoint(&id).unwrap(), None);
    let file = journal.begin(&endpoint("a")).unwrap();
    journal.make_durable(&file).unwrap();
    assert_eq!(journal.endpoint(&id).unwrap(), Some(endpoint("a")));
    journal.progress(&attached("a")).unwrap();
    assert_eq!(journal.endpoint(&id).unwrap(), Some(attached("a")));
    journal.begin(&endpoint("a")).unwrap();
    assert_eq!(journal.endpoint(&id).unwrap(), Some(endpoint("a")), "begun anew");
    journal.forget(&id).unwrap();
    journal.forget(&id).unwrap();
    assert_eq!(journal.endpoint(&id).unwrap(), None);
}

#[test]
fn a_write_torn_anywhere_leaves_the_state_before_it() {
    let (_dir, journal) = journal();
    let id = endpoint("a").id();
    journal.begin(&endpoint("a")).unwrap();
    let path = journal.dir().join("endpoints").join(id.file_name());
    let before = fs::read(&path).unwrap();
    journal.progress(&attached("a")).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in before.len()..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        // The line counts once its last brace is there; the line feed after it does not matter.
        let wanted = if length >= whole.len() - 1 {
            attached("a")
        } else {
            endpoint("a")
        };
        assert_eq!(
            journal.endpoint(&id).unwrap(),
            Some(wanted),
            "{length} of {}",
            whole.len()
        );
        journal.progress(&attached("a")).unwrap();
        assert_eq!(
            journal.endpoint(&id).unwrap(),
            Some(attached("a")),
            "repaired after {length}"
        );
    }
}

#[test]
fn records_are_listed_and_damage_is_named() {
    let (_dir, journal) = journal();
    assert!(journal.endpoints().unwrap().records.is_empty());
    for container in ["b", "a"] {
        journal.begin(&endpoint(container)).unwrap();
        journal.write_pending(&pending(container)).unwrap();
    }
    let endpoints = journal.dir().join("endpoints");
    fs::write(endpoints.join("c-eth0.json"), "").unwrap();
    fs::write(endpoints.join("d-eth0.json"), "{\"phase\":").unwrap();
    fs::write(endpoints.join(".1-0.e-eth0.json"), "left over").unwrap();
    let loaded = journal.endpoints().unwrap();
    assert_eq!(loaded.records, [endpoint("a"), endpoint("b")]);
    assert_eq!(loaded.damaged.len(), 2);
    assert_eq!(journal.all_pending().unwrap().records, [pending("a"), pending("b")]);
    journal.forget_pending(&pending("a").id()).unwrap();
    assert_eq!(journal.pending(&pending("a").id()).unwrap(), None);
    assert_eq!(journal.pending(&pending("b").id()).unwrap(), Some(pending("b")));
}

#[test]
fn attachments_never_share_a_file() {
    let names = [
        ("a-b", "c"),
        ("a", "b-c"),
        ("a-b-c", "d"),
        ("a", "b"),
        ("a-", "-c"),
        ("a", "--c"),
    ];
    let files: std::collections::BTreeSet<_> = names.iter().map(|(id, name)| Id::new(*id, *name).file_name()).collect();
    assert_eq!(files.len(), names.len());
    assert_eq!(Id::new("abc", "eth0").file_name(), "abc-eth0.json");
}

#[test]
fn only_the_owner_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, journal) = journal();
    journal.write_pending(&pending("a")).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = journal.dir().join("pending-delete");
    assert_eq!(mode(dir.join("a-eth0.json")), 0o600);
    assert_eq!(mode(dir), 0o700);
}

#[test]
fn no_temporary_file_stays() {
    let (_dir, journal) = journal();
    journal.begin(&endpoint("a")).unwrap();
    journal.write_pending(&pending("a")).unwrap();
    for part in ["endpoints", "pending-delete"] {
        let names: Vec<_> = fs::read_dir(journal.dir().join(part))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["a-eth0.json"]);
    }
}

#[test]
fn what_interrupted_writers_left_is_swept() {
    let (_dir, journal) = journal();
    journal.sweep(Duration::ZERO).unwrap();
    journal.begin(&endpoint("a")).unwrap();
    journal.write_pending(&pending("b")).unwrap();
    let left_over = |part: &str| journal.dir().join(part).join(".1-0.c-eth0.json");
    for part in ["endpoints", "pending-delete"] {
        fs::write(left_over(part), "{").unwrap();
    }
    journal.sweep(Duration::from_secs(3600)).unwrap();
    assert!(!left_over("endpoints").exists());
    assert!(left_over("pending-delete").exists(), "a plugin may be at it");
    journal.sweep(Duration::ZERO).unwrap();
    assert!(!left_over("pending-delete").exists());
    assert_eq!(journal.endpoints().unwrap().records, [endpoint("a")]);
    assert_eq!(journal.all_pending().unwrap().records, [pending("b")]);
}
