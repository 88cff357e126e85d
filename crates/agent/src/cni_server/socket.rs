//! The unix socket: one request and one reply for each connection.

use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use cni::protocol::{self, Reply, Request};
use cni::{Code, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::CniServer;

/// How long a plugin may take to send its request or to take its reply.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long requests under way may take once the server is told to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// Listens on `path`, for root alone. A socket that nobody serves any more is replaced in one step; one that somebody serves
/// is [`io::ErrorKind::AddrInUse`].
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = format!("{} is served by another process", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // Under another name until only root may connect; the rename also replaces what a dead agent left.
    let mut unready = path.as_os_str().to_owned();
    unready.push(".new");
    let unready = Path::new(&unready);
    match fs::remove_file(unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(unready)?;
    fs::set_permissions(unready, Permissions::from_mode(0o600))?;
    fs::rename(unready, path)?;
    Ok(listener)
}

impl CniServer {
    /// Serves requests, and finishes noted deletions, until `stop` comes; then lets requests under way come to their end,
    /// for a while.
    pub async fn serve(&self, listener: UnixListener, stop: impl Future<Output = ()>) {
        let mut requests = JoinSet::new();
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let server = self.clone();
                        requests.spawn(async move { server.answer(stream).await });
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: those who ask wait in the queue.
                        tracing::error!(%error, "cni: cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                while requests.try_join_next().is_some() {}
            }
        };
        tokio::select! {
            () = accept => {}
            () = self.keep_finishing() => {}
            () = stop => {}
        }
        drop(listener);
        let _ = tokio::time::timeout(FAREWELL, async { while requests.join_next().await.is_some() {} }).await;
        // Whatever is still under way goes on in the journal's care.
        requests.detach_all();
    }

    async fn answer(&self, mut stream: UnixStream) {
        let reply = match tokio::time::timeout(PATIENCE, read(&mut stream)).await {
            Ok(Ok(request)) => self.handle(request).await,
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "cni: a request cannot be decoded");
                Reply::Error(Error::new(Code::Decode, "cannot decode the request", error.to_string()))
            }
            Ok(Err(error)) => return tracing::debug!(%error, "cni: no request"),
            Err(_) => return tracing::debug!("cni: no request in time"),
        };
        let written = async { stream.write_all(&protocol::encode(&reply)?).await };
        match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(())) => {}
            // The runtime will ask again or ask for a DEL.
            Ok(Err(error)) => tracing::warn!(%error, "cni: nobody took the reply"),
            Err(_) => tracing::warn!("cni: nobody took the reply in time"),
        }
    }
}

async fn read(stream: &mut UnixStream) -> io::Result<Request> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut bytes = vec![0; protocol::message_length(length)?];
    stream.read_exact(&mut bytes).await?;
    protocol::decode(&bytes)
}
