//! Network namespaces, checked with `ip netns` and programs that run inside.

use std::io::ErrorKind;
use std::process::Command;

use linux::netns::{self, Netns};
use linux::{link, request::Socket};
use testkit::netns::{in_netns, tool};

#[test]
fn a_named_namespace_is_what_ip_netns_sees() {
    in_netns(|| async {
        let name = Named::new("named");
        assert!(
            tool("ip netns list")
                .lines()
                .any(|line| line.split_whitespace().next() == Some(&name.0))
        );
        assert!(netns::list().expect("lists").contains(&name.0));
        assert_eq!(
            netns::create(&name.0).expect_err("exists").kind(),
            ErrorKind::AlreadyExists
        );
        let inode = Netns::open(&netns::path(&name.0))
            .expect("opens")
            .inode()
            .expect("has one");
        assert_ne!(inode, netns::current().expect("has one"));
        assert_eq!(
            netns::run_in(&netns::path(&name.0), netns::current)
                .expect("enters")
                .expect("has one"),
            inode
        );
        netns::delete(&name.0).expect("deletes");
        netns::delete(&name.0).expect("absence is fine");
        assert!(!netns::list().expect("lists").contains(&name.0));
    });
}

#[test]
fn names_do_not_leave_the_directory() {
    for name in ["", ".", "..", "../x", "a/b", "a\0b"] {
        assert_eq!(netns::create(name).expect_err(name).kind(), ErrorKind::InvalidInput);
        assert_eq!(netns::delete(name).expect_err(name).kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_half_made_name_is_deleted() {
    in_netns(|| async {
        std::fs::create_dir_all(netns::DIRECTORY).expect("makes the directory");
        let name = format!("margay-test-half-{}", std::process::id());
        std::fs::File::create_new(netns::path(&name)).expect("makes the file");
        netns::delete(&name).expect("deletes");
        assert!(!netns::path(&name).exists());
    });
}

#[test]
fn a_program_starts_inside_and_sees_the_devices_there() {
    in_netns(|| async {
        let netns = Netns::unnamed().expect("makes one");
        netns
            .run(|| tool("ip link add inside type veth peer name other"))
            .expect("enters");
        let mut command = Command::new("ls");
        command.arg("/sys/class/net");
        netns.enter_before_exec(&mut command, true).expect("prepares");
        let listed = String::from_utf8(command.output().expect("runs").stdout).expect("text");
        assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["inside", "lo", "other"]);
        // The caller has stayed where it was.
        assert!(
            link::find(&mut Socket::open().expect("opens"), &"inside".into())
                .expect("asks")
                .is_none()
        );
    });
}

#[test]
fn a_thread_stays_inside() {
    in_netns(|| async {
        let netns = Netns::unnamed().expect("makes one");
        let inside = netns
            .spawn("inside", netns::current)
            .expect("starts")
            .join()
            .expect("ends");
        assert_eq!(
            inside.expect("enters").expect("has one"),
            netns.inode().expect("has one")
        );
    });
}

#[test]
fn devices_are_listed_moved_and_bridged() {
    in_netns(|| async {
        let netns = Netns::unnamed().expect("makes one");
        let mut socket = Socket::open().expect("opens");
        let end = |name| link::VethEnd {
            name,
            netns: None,
            mac: None,
            mtu: Some(1300),
        };
        let (bridge, near, far) = ("br0".into(), "near".into(), "far".into());
        link::create_bridge(&mut socket, &bridge).expect("makes a bridge");
        link::create_veth(&mut socket, &end(&near), &end(&far)).expect("makes a pair");
        link::move_to(&mut socket, &far, std::os::fd::AsFd::as_fd(&netns)).expect("moves");
        let master = link::index(&socket, &bridge).expect("is there");
        let settings = link::LinkSettings {
            up: Some(true),
            alias: Some("mark".into()),
            master: Some(master),
            ..link::LinkSettings::default()
        };
        link::set(&mut socket, &near, &settings).expect("sets");
        let links = link::list(&mut socket).expect("lists");
        let names: Vec<&str> = links.iter().map(|link| link.name.0.as_str()).collect();
        assert_eq!(names, ["lo", "br0", "near"]);
        let near_link = &links[2];
        assert_eq!(
            (near_link.mtu, near_link.master, near_link.up),
            (1300, Some(master), true)
        );
        assert_eq!(
            (near_link.kind.as_str(), near_link.alias.as_deref()),
            ("veth", Some("mark"))
        );
        assert!(link::delete(&mut socket, &bridge).expect("deletes"));
        assert!(!link::delete(&mut socket, &bridge).expect("absence is fine"));
    });
}

/// A namespace name that goes when the test ends, however it ends.
struct Named(String);

impl Named {
    fn new(what: &str) -> Self {
        let name = format!("margay-test-{what}-{}", std::process::id());
        netns::create(&name).expect("makes a namespace");
        Self(name)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        netns::delete(&self.0).expect("deletes");
    }
}
