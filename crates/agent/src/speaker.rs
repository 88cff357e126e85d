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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bgp::{Bind, ConnId, Input, Output, PeerEvent, PeerId, Speaker};
use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, tcp};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::run::Event;
use crate::status::BgpReport;

/// How long a peer may take nothing of what it is sent before the connection ends (RFC 9687 3.4: at least 8 minutes).
const SEND_HOLD: Duration = Duration::from_secs(8 * 60);
/// How many bytes may wait for a peer that takes them slowly, before the connection ends. A table of a million prefixes has
/// about ten.
const MOST_QUEUED: usize = 64 << 20;
/// How long to wait before listening is tried again.
const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// What the shell is told.
pub enum Command {
    /// Adopt this configuration; the first one starts the speaker.
    Config(Box<bgp::Config>),
    /// Answer with the state of the sessions.
    Report(oneshot::Sender<BgpReport>),
    /// Answer with what peers have told.
    Learnt(oneshot::Sender<Vec<Learnt>>),
    /// Say goodbye (Cease) to every peer, then answer.
    Shutdown(oneshot::Sender<()>),
}

/// A path that a peer told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learnt {
    /// Where it leads.
    pub prefix: IpNet,
    /// Through whom.
    pub next_hop: IpAddr,
    /// Who told it.
    pub peer: IpAddr,
    /// That is a peer of the mesh.
    pub mesh: bool,
}

/// Runs until the command channel closes.
///
/// `restarted`: the kernel still forwards by an earlier agent's routes, and peers are told so.
pub async fn run(
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<Event>,
    restarted: bool,
) {
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
            () = sleep_until(shell.listen_retry) => shell.listen(),
            () = sleep_until(wakeup) => shell.input(Input::Wake),
        }
    }
}

fn learnt(speaker: &Speaker) -> Vec<Learnt> {
    let mesh: std::collections::HashSet<PeerId> = (speaker.status().into_iter())
        .filter(|peer| peer.name.starts_with("Mesh_"))
        .map(|peer| peer.peer)
        .collect();
    let paths = speaker.routes().flat_map(|route| {
        let prefix = route.prefix;
        let paths = route.paths.into_iter();
        paths.filter_map(move |path| Some((prefix, path.from?, path.attributes.next_hop)))
    });
    paths
        .map(|(prefix, from, next_hop)| Learnt {
            prefix,
            next_hop,
            peer: from.0.ip(),
            mesh: mesh.contains(&from),
        })
        .collect()
}

struct Shell {
    speaker: Option<Speaker>,
    /// Identifier of the last configuration, and when it came.
    told: Option<(Ipv4Addr, jiff::Timestamp)>,
    restarted: bool,
    /// Where to listen.
    listen_on: Vec<SocketAddr>,
    listeners: Vec<TcpListener>,
    listen_error: Option<String>,
    listen_retry: Option<Instant>,
    connections: HashMap<ConnId, Connection>,
    accepted: u64,
    events: mpsc::UnboundedSender<Event>,
    traffic: mpsc::Sender<Input>,
}

/// One TCP connection: dropping it stops the reader; the writer ends when what was queued is out.
struct Connection {
    outbox: mpsc::UnboundedSender<Bytes>,
    /// Bytes in the outbox.
    queued: Arc<AtomicUsize>,
    /// Stops the writer though the outbox has something left.
    stop_writer: oneshot::Sender<()>,
    reader: JoinHandle<()>,
}

impl Shell {
    fn new(events: mpsc::UnboundedSender<Event>, traffic: mpsc::Sender<Input>, restarted: bool) -> Self {
        Self {
            speaker: None,
            told: None,
            restarted,
            listen_on: Vec::new(),
            listeners: Vec::new(),
            listen_error: None,
            listen_retry: None,
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
                let report = BgpReport::of(self.speaker.as_ref(), self.listen_error.clone(), Instant::now());
                let _ = reply.send(BgpReport {
                    router_id: self.told.map(|(router_id, _)| router_id.to_string()),
                    configured: self.told.map(|(_, at)| at),
                    ..report
                });
            }
            Command::Learnt(reply) => drop(reply.send(self.speaker.as_ref().map(learnt).unwrap_or_default())),
            Command::Shutdown(done) => {
                let outputs = self.speaker.as_mut().map(|speaker| speaker.shutdown(Instant::now()));
                self.perform(outputs.unwrap_or_default());
                let _ = done.send(());
            }
        }
    }

    fn configure(&mut self, config: bgp::Config) {
        let now = Instant::now();
        self.told = Some((config.router_id, jiff::Timestamp::now()));
        let own = [config.address_v4.map(IpAddr::V4), config.address_v6.map(IpAddr::V6)];
        let addresses = own.map(|own| match (own?, config.bind) {
            (own, Bind::OwnAddresses) => Some(own),
            (IpAddr::V4(_), Bind::All) => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            (IpAddr::V6(_), Bind::All) => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        });
        let port = config.listen_port;
        self.listen_on = addresses
            .into_iter()
            .flatten()
            .map(|address| SocketAddr::new(address, port))
            .collect();
        self.listen();
        let outputs = match &mut self.speaker {
            Some(speaker) => speaker.reconfigure(now, config),
            None => {
                let speaker = if self.restarted {
                    Speaker::restarted(now, config)
                } else {
                    Speaker::new(now, config)
                };
                self.speaker.insert(speaker).step(now, Input::Wake)
            }
        };
        self.perform(outputs);
    }

    /// Listens where it should and nowhere else; what fails is tried again (an address can be late, a port be held by an
    /// agent on its way out).
    fn listen(&mut self) {
        let wanted = &self.listen_on;
        let is_at =
            |listener: &TcpListener, address: &SocketAddr| listener.local_addr().is_ok_and(|have| have == *address);
        self.listeners
            .retain(|listener| wanted.iter().any(|address| is_at(listener, address)));
        let mut errors = Vec::new();
        for address in wanted {
            if self.listeners.iter().any(|listener| is_at(listener, address)) {
                continue;
            }
            match listen(*address) {
                Ok(listener) => self.listeners.push(listener),
                Err(error) => errors.push(format!("cannot listen on {address}: {error}")),
            }
        }
        let error = (!errors.is_empty()).then(|| errors.join("; "));
        if let Some(error) = error
            .as_ref()
            .filter(|error| self.listen_error.as_ref() != Some(*error))
        {
            tracing::warn!(%error, "BGP: trying again");
        }
        self.listen_error = error;
        self.listen_retry = self.listen_error.is_some().then(|| Instant::now() + LISTEN_RETRY);
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
        let (connect, outgoing) = Outgoing::new();
        tokio::spawn(write(conn, writer, outgoing, self.traffic.clone()));
        let reader = tokio::spawn(read(conn, reader, self.traffic.clone()));
        self.connections.insert(conn, connect(reader));
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
        let mut choked = Vec::new();
        for output in outputs {
            match output {
                Output::Connect { conn, peer, source } => self.connect(conn, peer, source),
                Output::Send(conn, bytes) => {
                    if let Some(connection) = self.connections.get(&conn) {
                        let before = connection.queued.fetch_add(bytes.len(), Ordering::Relaxed);
                        if before > MOST_QUEUED {
                            choked.push(conn);
                        }
                        let _ = connection.outbox.send(bytes);
                    }
                }
                Output::Close(conn) => self.drop_connection(conn),
                Output::Fib(change) => fib.push(change),
                Output::Peer(event) => log(&event),
                Output::Converged => self.report(Event::BgpConverged),
            }
        }
        if !fib.is_empty() {
            self.report(Event::Fib(fib));
        }
        for conn in choked {
            // Several messages of one batch may find it full.
            if let Some(connection) = self.connections.remove(&conn) {
                tracing::warn!(
                    ?conn,
                    "BGP: the peer does not take what it is sent; the connection ends"
                );
                connection.reader.abort();
                let _ = connection.stop_writer.send(());
                self.input(Input::Closed(conn));
            }
        }
    }

    fn connect(&mut self, conn: ConnId, peer: PeerId, source: Option<IpAddr>) {
        let traffic = self.traffic.clone();
        let (connect, outgoing) = Outgoing::new();
        let reader = tokio::spawn(async move {
            match dial(peer.0, source).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    let (reader, writer) = stream.into_split();
                    tokio::spawn(write(conn, writer, outgoing, traffic.clone()));
                    if traffic.send(Input::Connected(conn)).await.is_ok() {
                        read(conn, reader, traffic).await;
                    }
                }
                Err(error) => {
                    let _ = traffic.send(Input::ConnectFailed(conn, error.to_string())).await;
                }
            }
        });
        self.connections.insert(conn, connect(reader));
    }

    fn drop_connection(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.remove(&conn) {
            connection.reader.abort();
        }
    }

    fn report(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

/// A session that ends is worth a warning only if nobody meant it to.
fn log(event: &PeerEvent) {
    let (peer, address, change) = (&event.name, event.peer.0, &event.change);
    match event.is_unexpected() {
        true => tracing::warn!(peer, %address, "BGP session {change}"),
        false => tracing::info!(peer, %address, "BGP session {change}"),
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if address.is_ipv6() {
        // IPv4 has a socket of its own, where it is listened on at all.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

async fn dial(remote: SocketAddr, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let socket = if remote.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
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
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn read(conn: ConnId, mut reader: tcp::OwnedReadHalf, traffic: mpsc::Sender<Input>) {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    while let Ok(1..) = reader.read_buf(&mut buffer).await {
        if traffic
            .send(Input::Received(conn, buffer.split().freeze()))
            .await
            .is_err()
        {
            return;
        }
        buffer.reserve(4096);
    }
    let _ = traffic.send(Input::Closed(conn)).await;
}

/// The writer's end of a connection.
struct Outgoing {
    queue: mpsc::UnboundedReceiver<Bytes>,
    queued: Arc<AtomicUsize>,
    stop: oneshot::Receiver<()>,
}

impl Outgoing {
    /// Both ends; the other one needs its reader.
    fn new() -> (impl FnOnce(JoinHandle<()>) -> Connection, Self) {
        let (outbox, queue) = mpsc::unbounded_channel();
        let (stop_writer, stop) = oneshot::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let counter = queued.clone();
        let connect = move |reader| Connection {
            outbox,
            queued: counter,
            stop_writer,
            reader,
        };
        (connect, Self { queue, queued, stop })
    }
}

/// Writes until the outbox is dropped and empty, or the peer takes nothing for too long, or it is stopped.
async fn write(conn: ConnId, writer: tcp::OwnedWriteHalf, outgoing: Outgoing, traffic: mpsc::Sender<Input>) {
    let Outgoing { queue, queued, stop } = outgoing;
    tokio::select! {
        held = write_all(writer, queue, &queued) => if held {
            let _ = traffic.send(Input::Closed(conn)).await;
        },
        // A sender that is only dropped lets the writer finish.
        Ok(()) = stop => {}
    }
}

/// Whether it ended because the peer takes nothing.
async fn write_all(
    mut writer: tcp::OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
    queued: &AtomicUsize,
) -> bool {
    while let Some(bytes) = queue.recv().await {
        match tokio::time::timeout(SEND_HOLD, writer.write_all(&bytes)).await {
            Ok(Ok(())) => drop(queued.fetch_sub(bytes.len(), Ordering::Relaxed)),
            // The reader sees that the connection is gone.
            Ok(Err(_)) => return false,
            Err(_) => return true,
        }
    }
    let _ = writer.shutdown().await;
    false
}

async fn sleep_until(wakeup: Option<Instant>) {
    match wakeup {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
