//! Pods of a lab that talk over TCP, and resources in short form.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use linux::netns::Netns;

use super::Lab;

/// Where the lab of this name keeps a pod.
pub fn inside(lab: &Lab, pod: &str) -> Netns {
    let path = format!("/run/netns/{}.pod-{pod}", lab.name);
    Netns::open(Path::new(&path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Answers every connection with what it hears, as long as the test runs.
pub fn echo(lab: &Lab, pod: &str, port: u16) {
    let listener = inside(lab, pod)
        .run(move || TcpListener::bind(("::", port)))
        .expect("the pod's namespace")
        .expect("the port is free");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (&stream, &stream);
                std::io::copy(&mut from, &mut to)
            });
        }
    });
}

/// A connection from a pod.
pub fn connect(lab: &Lab, pod: &str, to: &str, port: u16) -> std::io::Result<TcpStream> {
    connect_within(lab, pod, to, port, Duration::from_secs(1))
}

pub fn connect_within(lab: &Lab, pod: &str, to: &str, port: u16, limit: Duration) -> std::io::Result<TcpStream> {
    let to = SocketAddr::new(to.parse().expect("an address"), port);
    let stream = inside(lab, pod).run(move || TcpStream::connect_timeout(&to, limit))??;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub fn answers(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream
        .write_all(b"ping")
        .and_then(|()| stream.read_exact(&mut answer))
        .is_ok()
}

/// Applies a resource in short form.
pub fn apply(lab: &Lab, kind: &str, name: &str, spec: &str) {
    let text = format!(
        r#"{{"apiVersion":"projectcalico.org/v3","kind":"{kind}","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
    );
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    lab.ctl(&["apply", "-f", &file.path().to_string_lossy()]);
}

/// Pods may not reach any of `to` from `from`; everything else is as it was.
pub fn forbid(lab: &Lab, name: &str, from: &str, to: &[&str]) {
    let net = |address: &str| format!("\"{address}/{}\"", if address.contains(':') { 128 } else { 32 });
    let to: Vec<String> = to.iter().map(|address| net(address)).collect();
    let (from, to) = (net(from), to.join(","));
    let spec = format!(
        r#"{{"selector":"all()","order":10,"types":["Ingress"],"ingress":[
            {{"action":"Deny","source":{{"nets":[{from}]}},"destination":{{"nets":[{to}]}}}},{{"action":"Allow"}}]}}"#
    );
    apply(lab, "GlobalNetworkPolicy", name, &spec);
}
