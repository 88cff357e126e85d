//! The BGP shell: sockets and timers around [`bgp::Speaker`], which decides everything.
//!
//! ```text
//!   commands (config, report, shutdown) ─┐
//!   accept ── listener ──────────────────┼─> Speaker::step ─> outputs: connect, send, close, FIB changes
//!   bytes ─── one reader a connection ───┤
//!   time ──── next_wakeup ───────────────┘
//! ```
//!
//! The process ends by dropping its sockets without a NOTIFICATION: peers then keep forwarding (RFC 4724) until the next
//! agent is back. Only a deliberate removal of the node sends Cease.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bgp::{ConnId, Input, Output, PeerId, Speaker};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, tcp};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::run::Event;
use crate::status::BgpReport;

/// What the shell is told.
pub enum Command {
    /// Adopt this configuration; the first one starts the speaker.
    Config(Box<bgp::Config>),
    /// Answer with the state of the sessions.
    Report(oneshot::Sender<BgpReport>),
    /// Say goodbye (Cease) to every peer, then answer.
    Shutdown(oneshot::Sender<()>),
}

/// Runs until the command channel closes.
///
/// `restarted`: the kernel still forwards by an earlier agent's routes, and peers are told so.
pub async fn run(mut commands: mpsc::UnboundedReceiver<Command>, events: mpsc::UnboundedSender<Event>, restarted: bool) {
    let (traffic, mut arrivals) = mpsc::channel(256);
    let mut shell = Shell::new(events, traffic, restarted);
    loop {
        let wakeup = shell.speaker.as_ref().and_then(Speaker::next_wakeup);
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => shell.obey(command).await,
                None => return,
            },
            Some(arrival) = arrivals.recv() => shell.input(arrival),
            (stream, remote) = accept(&shell.listeners) => shell.accepted(stream, remote),
            () = sleep_until(wakeup) => shell.input(Input::Wake),
        }
    }
}

struct Shell {
    speaker: Option<Speaker>,
    restarted: bool,
    listeners: Vec<TcpListener>,
    listen_error: Option<String>,
    connections: HashMap<ConnId, Connection>,
    accepted: u64,
    events: mpsc::UnboundedSender<Event>,
    traffic: mpsc::Sender<Input>,
}

/// One TCP connection: dropping it stops the reader; the writer ends when what was queued is out.
struct Connection {
    outbox: Option<mpsc::UnboundedSender<Bytes>>,
    reader: JoinHandle<()>,
}

impl Shell {
    fn new(events: mpsc::UnboundedSender<Event>, traffic: mpsc::Sender<Input>, restarted: bool) -> Self {
        Self {
            speaker: None,
            restarted,
            listeners: Vec::new(),
            listen_error: None,
            connections: HashMap::new(),
            accepted: 0,
            events,
            traffic,
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Config(config) => self.configure(*config),
            Command::Report(reply) => {
                let _ = reply.send(BgpReport::of(self.speaker.as_ref(), self.listen_error.clone(), Instant::now()));
            }
            Command::Shutdown(done) => {
                let outputs = self.speaker.as_mut().map(|speaker| speaker.shutdown(Instant::now()));
                self.perform(outputs.unwrap_or_default());
                let _ = done.send(());
            }
        }
    }

    fn configure(&mut self, config: bgp::Config) {
        let now = Instant::now();
        let outputs = match &mut self.speaker {
            Some(speaker) => {
                let outputs = speaker.reconfigure(now, config.clone());
                self.listen(&config);
                outputs
            }
            None => {
                self.listen(&config);
                let speaker = if self.restarted { Speaker::restarted(now, config) } else { Speaker::new(now, config) };
                self.speaker.insert(speaker).step(now, Input::Wake)
            }
        };
        self.perform(outputs);
    }

    /// Listens on the node's own addresses, so that a speaker of the host's own can have the others.
    fn listen(&mut self, config: &bgp::Config) {
        let addresses = [config.address_v4.map(IpAddr::V4), config.address_v6.map(IpAddr::V6)];
        let wanted: Vec<SocketAddr> =
            addresses.into_iter().flatten().map(|address| SocketAddr::new(address, config.listen_port)).collect();
        self.listeners.retain(|listener| listener.local_addr().is_ok_and(|address| wanted.contains(&address)));
        self.listen_error = None;
        for address in wanted {
            if self.listeners.iter().any(|listener| listener.local_addr().is_ok_and(|have| have == address)) {
                continue;
            }
            match listen(address) {
                Ok(listener) => self.listeners.push(listener),
                Err(error) => {
                    tracing::warn!(%address, %error, "cannot listen for BGP connections");
                    self.listen_error = Some(format!("cannot listen on {address}: {error}"));
                }
            }
        }
    }

    fn accepted(&mut self, stream: TcpStream, remote: SocketAddr) {
        self.accepted += 1;
        // The speaker numbers the connections that it asks for; ours have the top bit set.
        let conn = ConnId(1 << 63 | self.accepted);
        self.adopt(conn, stream);
        self.input(Input::Accepted(conn, remote));
    }

    fn adopt(&mut self, conn: ConnId, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        let (outbox, queue) = mpsc::unbounded_channel();
        tokio::spawn(write(writer, queue));
        let reader = tokio::spawn(read(conn, reader, self.traffic.clone()));
        self.connections.insert(conn, Connection { outbox: Some(outbox), reader });
    }

    fn input(&mut self, arrival: Input) {
        if let Input::Closed(conn) | Input::ConnectFailed(conn, _) = &arrival {
            self.drop_connection(*conn);
        }
        let Some(speaker) = &mut self.speaker else { return };
        let outputs = speaker.step(Instant::now(), arrival);
        self.perform(outputs);
    }

    fn perform(&mut self, outputs: Vec<Output>) {
        let mut fib = Vec::new();
        for output in outputs {
            match output {
                Output::Connect { conn, peer, source } => self.connect(conn, peer, source),
                Output::Send(conn, bytes) => {
                    if let Some(outbox) = self.connections.get(&conn).and_then(|connection| connection.outbox.as_ref()) {
                        let _ = outbox.send(bytes);
                    }
                }
                Output::Close(conn) => self.drop_connection(conn),
                Output::Fib(change) => fib.push(change),
                Output::Converged => self.report(Event::BgpConverged),
            }
        }
        if !fib.is_empty() {
            self.report(Event::Fib(fib));
        }
    }

    fn connect(&mut self, conn: ConnId, peer: PeerId, source: Option<IpAddr>) {
        let traffic = self.traffic.clone();
        let (outbox, queue) = mpsc::unbounded_channel();
        let reader = tokio::spawn(async move {
            match dial(peer.0, source).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    let (reader, writer) = stream.into_split();
                    tokio::spawn(write(writer, queue));
                    if traffic.send(Input::Connected(conn)).await.is_ok() {
                        read(conn, reader, traffic).await;
                    }
                }
                Err(error) => {
                    let _ = traffic.send(Input::ConnectFailed(conn, error.to_string())).await;
                }
            }
        });
        self.connections.insert(conn, Connection { outbox: Some(outbox), reader });
    }

    fn drop_connection(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.remove(&conn) {
            connection.reader.abort();
            drop(connection.outbox);
        }
    }

    fn report(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

async fn dial(remote: SocketAddr, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let socket = if remote.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(remote).await
}

async fn accept(listeners: &[TcpListener]) -> (TcpStream, SocketAddr) {
    if listeners.is_empty() {
        return std::future::pending().await;
    }
    loop {
        let accepts = listeners.iter().map(|listener| Box::pin(listener.accept()));
        match futures::future::select_all(accepts).await.0 {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Out of descriptors or the like: asking again at once would spin.
                tracing::warn!(%error, "accepting a BGP connection failed");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn read(conn: ConnId, mut reader: tcp::OwnedReadHalf, traffic: mpsc::Sender<Input>) {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    while let Ok(1..) = reader.read_buf(&mut buffer).await {
        if traffic.send(Input::Received(conn, buffer.split().freeze())).await.is_err() {
            return;
        }
        buffer.reserve(4096);
    }
    let _ = traffic.send(Input::Closed(conn)).await;
}

async fn write(mut writer: tcp::OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Bytes>) {
    while let Some(bytes) = queue.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

async fn sleep_until(wakeup: Option<Instant>) {
    match wakeup {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

