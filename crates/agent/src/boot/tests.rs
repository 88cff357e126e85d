//! On a live kernel: what is closed, and that it is before anything else.

use std::fs;
use std::path::Path;

use clap::Parser;
use testkit::netns::{in_netns, tool};

use super::*;
use crate::config::Config;
use crate::start::serve;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: crate::Options,
}

const KNOWN: &str = concat!(
    r#"{"kind":"HostEndpoint","metadata":{"name":"guarded","labels":{"host":"yes"}},"spec":{"node":"n1","interfaceName":"eth0"}}"#,
    "\n",
    r#"{"kind":"GlobalNetworkPolicy","metadata":{"name":"p"},"spec":{"selector":"has(host)","types":["Ingress"],"applyOnForward":true}}"#,
    "\n",
);

fn options(state_dir: &Path) -> Options {
    Options {
        state_dir: state_dir.to_owned(),
        interface_prefix: PREFIX.to_owned(),
        open_if_unknown: false,
    }
}

fn know(state_dir: &Path, text: &str) {
    fs::write(last_known::path(state_dir), text).expect("written");
}

fn table() -> String {
    tool("nft list table inet calico")
}

#[test]
fn an_agent_closes_the_host_before_it_opens_the_datastore() {
    in_netns(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        know(dir.path(), KNOWN);
        let path = dir.path().display().to_string();
        let words = ["agent", "--run-dir", &path, "--state-dir", &path, "--ip", "10.0.0.1/24"];
        let options = Line::try_parse_from(words).expect("the flags are right").options;
        let config = Config::from_options(&options, "n1").expect("options");
        let mut seen = String::new();
        let open = || {
            seen = table();
            Err("far enough".to_owned())
        };
        let ended = serve(config, open, None, |_| {}).await;
        assert!(matches!(ended, Err(AgentError::Connect(_))), "{ended:?}");
        for part in ["cali-fh-guarded", "cali-fhfw-guarded", "failsafe", "pod without policy"] {
            assert!(seen.contains(part), "{part} in {seen}");
        }
    });
}

#[test]
fn boot_closes_what_was_known_once() {
    in_netns(|| async {
        let dir = tempfile::tempdir().expect("a directory");
        know(dir.path(), KNOWN);
        let check = async |expected: &str, part: &str| {
            let said = close(&options(dir.path()))
                .await
                .expect("the kernel takes it")
                .join("\n");
            assert!(said.contains(expected), "{said}");
            assert!(table().contains(part), "{part} in {}", table());
        };
        check("HostEndpoint(guarded): after a boot, closed", "cali-fh-guarded").await;
        check("it stays as it is", "cali-fh-guarded").await;
        // A table of our name that no agent has made enforces nothing.
        for foreign in [
            &[][..],
            &[
                "nft add chain inet calico mine { type filter hook forward priority 5; }",
                "nft add rule inet calico mine ip saddr 10.0.0.9 accept",
            ],
            &[
                "nft add chain inet calico filter-FORWARD",
                "nft add rule inet calico filter-FORWARD numgen random mod 2 == 0 ip saddr 10.0.0.9 accept",
            ],
        ] {
            tool("nft delete table inet calico");
            tool("nft add table inet calico");
            foreign.iter().for_each(|command| drop(tool(command)));
            check("HostEndpoint(guarded): after a boot, closed", "cali-fh-guarded").await;
            assert!(!table().contains("10.0.0.9"), "{}", table());
            check("it stays as it is", "cali-fh-guarded").await;
        }
        // Neither half a file nor none says which devices are to be closed.
        for known in [Some(&KNOWN[..KNOWN.len() / 2]), None] {
            tool("nft delete table inet calico");
            match known {
                Some(text) => know(dir.path(), text),
                None => fs::remove_file(last_known::path(dir.path())).expect("removed"),
            }
            check(
                "all devices: after a boot, closed",
                "no profile allows: (until policy is known)",
            )
            .await;
        }
        tool("nft delete table inet calico");
        know(dir.path(), "");
        check("no host endpoint is known here", "pod without policy").await;
        assert!(!table().contains("failsafe"));
    });
}
