//! Asking an agent, over its unix socket. Blocking; for command lines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::PATIENCE;
use crate::AgentError;
use crate::flows::FlowReport;
use crate::path::{PathQuestion, PathView};
use crate::policy_view::PolicyView;
use crate::status::Report;
use crate::watch::{WatchLine, WatchQuestion};

/// How long a report may be: what it lists is bounded by what a node can have.
const MOST: u64 = 64 << 20;

/// Where the agent of a run directory answers.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// Asks the agent on `socket` for its report. Blocking; for command lines.
pub fn ask(socket: &Path) -> Result<Report, AgentError> {
    get_json(socket, "/status")
}

/// Asks the agent on `socket` what there is to policy on its node. Blocking; for command lines.
pub fn ask_policy(socket: &Path) -> Result<PolicyView, AgentError> {
    get_json(socket, "/policy")
}

/// Asks the agent on `socket` for the flow records that changed after the number. Blocking; for command lines.
pub fn ask_flows(socket: &Path, after: u64) -> Result<FlowReport, AgentError> {
    get_json(socket, &format!("/flows?after={after}"))
}

/// Asks the agent on `socket` which way a packet takes through its node. Blocking; for command lines.
pub fn ask_path(socket: &Path, question: &PathQuestion) -> Result<PathView, AgentError> {
    let PathQuestion {
        source, destination, ..
    } = question;
    let by = format!("{:?}", question.by).to_lowercase();
    let from = question.from.map(|from| format!("&from={from}")).unwrap_or_default();
    get_json(
        socket,
        &format!("/path?source={source}&destination={destination}&by={by}{from}"),
    )
}

/// Follows what the agent on `socket` sees, line by line until there is no more: `each` says whether to go on. Blocking; for
/// command lines.
pub fn follow_watch(
    socket: &Path,
    question: &WatchQuestion,
    mut each: impl FnMut(WatchLine) -> bool,
) -> Result<(), AgentError> {
    use std::io::BufRead;
    let WatchQuestion {
        source,
        destination,
        protocol,
        ends,
        seconds,
    } = question;
    let ends = crate::watch::word(ends);
    let path =
        format!("/watch?source={source}&destination={destination}&protocol={protocol}&ends={ends}&seconds={seconds}");
    let stream = request(socket, &path)?;
    let ends = AgentError::io(format!("the agent on {} does not answer", socket.display()));
    let patience = Some(Duration::from_secs(*seconds) + PATIENCE);
    if let Err(error) = stream.set_read_timeout(patience) {
        return Err(ends(error));
    }
    let mut status = None;
    let mut in_body = false;
    for line in std::io::BufReader::new(stream).lines() {
        let line = match line {
            Ok(line) => line,
            Err(error) => return Err(ends(error)),
        };
        let status = status.get_or_insert_with(|| line.clone());
        if !in_body {
            in_body = line.is_empty();
            continue;
        }
        let Ok(line) = serde_json::from_str(&line) else {
            return Err(answered(socket, &format!("{status}: {line}")));
        };
        if !each(line) {
            return Ok(());
        }
    }
    match status {
        Some(status) if status.contains(" 200 ") => Ok(()),
        status => Err(answered(socket, &status.unwrap_or_default())),
    }
}

/// Sends a request. HTTP/1.0: the answer ends with the connection, so there is no chunking to undo.
fn request(socket: &Path, path: &str) -> Result<std::os::unix::net::UnixStream, AgentError> {
    use std::io::Write;
    let what = format!("no agent answers on {}; is it running on this node?", socket.display());
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(AgentError::io(what.clone()))?;
    let patience = Some(PATIENCE + Duration::from_secs(2));
    let timed = stream
        .set_read_timeout(patience)
        .and_then(|()| stream.set_write_timeout(patience));
    timed.map_err(AgentError::io(what.clone()))?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .map_err(AgentError::io(what))?;
    Ok(stream)
}

fn answered(socket: &Path, what: &str) -> AgentError {
    AgentError::Io {
        what: format!("the agent on {} answered: {}", socket.display(), what.trim()),
        source: std::io::ErrorKind::InvalidData.into(),
    }
}

fn get_json<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, AgentError> {
    use std::io::Read;
    let stream = request(socket, path)?;
    let mut answer = String::new();
    let read = stream.take(MOST).read_to_string(&mut answer);
    read.map_err(AgentError::io(format!(
        "the agent on {} does not answer",
        socket.display()
    )))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|_| answered(socket, body))
}
