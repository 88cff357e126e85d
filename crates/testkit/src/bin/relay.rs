//! A bad way to a server: relays TCP connections and does one thing wrong. For stories on real clusters.
//!
//! usage: relay LISTEN SERVER delay SECONDS | cut BYTES      what comes from the server comes so late, or breaks off after so much
//!        relay LISTEN proxy                                 a proxy for CONNECT, good; says on stdout where it led
//!        relay LISTEN page CODE                             no server: a page with this code, in plain HTTP

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What is done to a connection.
#[derive(Clone)]
enum Deed {
    /// Bytes from the server at this address wait so long.
    Delay(String, Duration),
    /// The connection ends after so many bytes from the server.
    Cut(String, usize),
    /// Leads where CONNECT says.
    Proxy,
    /// Answers every request with this code.
    Page(u16),
}

const USAGE: &str = "usage: relay LISTEN SERVER delay SECONDS | SERVER cut BYTES | proxy | page CODE";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some((listen, deed)) = read(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    let listener = match TcpListener::bind(listen) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("{listen}: {error}");
            return ExitCode::FAILURE;
        }
    };
    for client in listener.incoming().flatten() {
        let deed = deed.clone();
        // Who breaks it off is none of our concern.
        thread::spawn(move || drop(serve(client, &deed)));
    }
    ExitCode::SUCCESS
}

/// Where to listen, and what to do; `None` if it is not that.
fn read<'a>(arguments: &[&'a str]) -> Option<(&'a str, Deed)> {
    match arguments {
        [listen, server, "delay", seconds] => {
            let delay = Duration::from_secs(seconds.parse().ok()?);
            Some((listen, Deed::Delay((*server).to_owned(), delay)))
        }
        [listen, server, "cut", bytes] => Some((listen, Deed::Cut((*server).to_owned(), bytes.parse().ok()?))),
        [listen, "proxy"] => Some((listen, Deed::Proxy)),
        [listen, "page", code] => Some((listen, Deed::Page(code.parse().ok()?))),
        _ => None,
    }
}

fn serve(mut client: TcpStream, deed: &Deed) -> io::Result<()> {
    client.set_nodelay(true)?;
    match deed {
        Deed::Delay(server, delay) => {
            let server = TcpStream::connect(server)?;
            let answers = late(server.try_clone()?, *delay);
            join(client, server, move |client| {
                answers.into_iter().try_for_each(|bytes| client.write_all(&bytes))
            })
        }
        Deed::Cut(server, most) => {
            let server = TcpStream::connect(server)?;
            let mut answers = server.try_clone()?.take(*most as u64);
            join(client, server, move |client| io::copy(&mut answers, client).map(|_| ()))
        }
        Deed::Proxy => {
            let head = head(&client)?;
            let Some(server) = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
                return client.write_all(b"HTTP/1.1 405 no CONNECT\r\nContent-Length: 0\r\n\r\n");
            };
            println!("{server}");
            io::stdout().flush()?;
            let server = TcpStream::connect(server)?;
            client.write_all(b"HTTP/1.1 200 connected\r\n\r\n")?;
            let mut answers = server.try_clone()?;
            join(client, server, move |client| io::copy(&mut answers, client).map(|_| ()))
        }
        Deed::Page(code) => {
            head(&client)?;
            let text = "<html>Bad Gateway</html>\n";
            let length = text.len();
            write!(
                client,
                "HTTP/1.1 {code} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{text}"
            )
        }
    }
}

/// Requests go to the server as they come; answers come back by `back`. Ends both ways when that ends.
fn join(
    mut client: TcpStream,
    mut server: TcpStream,
    back: impl FnOnce(&mut TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    let mut requests = client.try_clone()?;
    let ours = server.try_clone()?;
    let there = thread::spawn(move || {
        let copied = io::copy(&mut requests, &mut server);
        let _ = server.shutdown(Shutdown::Write);
        copied
    });
    let ended = back(&mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = ours.shutdown(Shutdown::Both);
    let _ = there.join();
    ended
}

/// What comes from a stream, each piece when it is so old.
fn late(mut server: TcpStream, delay: Duration) -> mpsc::IntoIter<Vec<u8>> {
    let (pieces, waiting) = mpsc::channel::<(Instant, Vec<u8>)>();
    let (out, late) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 1 << 14];
        while let Ok(count @ 1..) = server.read(&mut bytes) {
            if pieces.send((Instant::now() + delay, bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in waiting {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if out.send(piece).is_err() {
                return;
            }
        }
    });
    late.into_iter()
}

/// The head of a request.
fn head(client: &TcpStream) -> io::Result<String> {
    let mut head = String::new();
    let mut lines = BufReader::new(client.try_clone()?);
    while lines.read_line(&mut head)? > 2 {}
    Ok(head)
}
