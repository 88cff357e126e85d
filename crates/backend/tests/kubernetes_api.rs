//! The contract of API servers: kept by the fake one that other tests rely on, in memory and over loopback, and by a real one.

mod api_contract;
#[allow(dead_code, reason = "tests of faults use the rest")]
mod faults;
mod kubernetes_support;

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use api_contract::{Dial, Stream, Subject, examine};
use faults::{FakeApi, Fault};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use kubernetes_support::{kubectl, prepare, run};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

fn boxed(stream: impl Stream + 'static) -> Box<dyn Stream> {
    Box::new(stream)
}

/// A fake server as a subject, reached in this way.
async fn fake(dial: impl Fn(&FakeApi) -> Dial) -> (Arc<FakeApi>, Subject) {
    let mut api = FakeApi::start(Fault::None).await;
    api.wants("admin").await;
    api.knows_powerless("powerless");
    let api = Arc::new(api);
    let to_compact = Arc::clone(&api);
    let subject = Subject {
        dial: dial(&api),
        host: "fake.example".into(),
        token: "admin".into(),
        powerless: "powerless".into(),
        compact: Box::new(move |version| {
            to_compact.compacts(version);
            ready(()).boxed_local()
        }),
    };
    (api, subject)
}

#[test]
fn the_fake_in_memory_keeps_the_contract() {
    let in_memory = |api: &FakeApi| -> Dial {
        let wire = api.wire();
        Box::new(move || ready(wire.dial().map(boxed)).boxed_local())
    };
    examine(|_, check| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        runtime.expect("a runtime").block_on(async {
            let (_api, subject) = fake(in_memory).await;
            subject.prepare().await;
            check(&subject).await;
        });
    });
}

#[test]
fn the_fake_over_loopback_keeps_the_contract() {
    let over_loopback = |api: &FakeApi| -> Dial {
        let address = api.address;
        Box::new(move || {
            TcpStream::connect(address)
                .map(|stream| stream.map(boxed))
                .boxed_local()
        })
    };
    // Their time is real: what waits is examined in memory.
    let waits = |name: &str| name.contains("bookmark") || name.contains("time_is_up") || name.contains("to_come");
    examine(|name, check| {
        if waits(name) {
            return;
        }
        run(async {
            let (_api, subject) = fake(over_loopback).await;
            subject.prepare().await;
            check(&subject).await;
        });
    });
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn a_real_one_keeps_the_contract() {
    prepare();
    kubectl(
        "apply -f -",
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: powerless, namespace: ns}\n",
    );
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is set by the runner"));
    let server = variable("KUBE_API");
    let address = server
        .strip_prefix("https://")
        .expect("it has TLS")
        .trim_end_matches('/')
        .to_owned();
    let dial = tls(address.parse().expect("an address"), &variable("KUBE_CA"));
    let etcd = variable("ETCD_ENDPOINTS");
    let subject = Subject {
        dial,
        host: address,
        token: variable("KUBE_TOKEN"),
        powerless: kubectl("create token powerless -n ns", "").trim().to_owned(),
        compact: Box::new(move |version| compacted(etcd.clone(), version).boxed_local()),
    };
    examine(|_, check| {
        run(async {
            subject.prepare().await;
            check(&subject).await;
        });
    });
    run(subject.prepare());
}

/// TLS to a server whose authority is in this file.
fn tls(address: SocketAddr, authority: &str) -> Dial {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).expect("the authority's file") {
        roots.add(certificate.expect("a certificate")).expect("of an authority");
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("it has some")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    Box::new(move || -> LocalBoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(boxed(connector.connect(ServerName::from(address.ip()), stream).await?))
        }
        .boxed_local()
    })
}

/// Has etcd forget what was before a version.
async fn compacted(etcd: String, version: u64) {
    let address = etcd.trim_start_matches("http://").to_owned();
    let connected = address.clone();
    let subject = Subject {
        dial: Box::new(move || {
            TcpStream::connect(connected.clone())
                .map(|stream| stream.map(boxed))
                .boxed_local()
        }),
        host: address,
        token: String::new(),
        powerless: String::new(),
        compact: Box::new(|_| ready(()).boxed_local()),
    };
    let wanted = serde_json::json!({ "revision": version.to_string() });
    let answer = subject.send("POST", "/v3/kv/compaction", &wanted).await;
    assert_eq!(answer.code, 200, "{answer:?}");
}
