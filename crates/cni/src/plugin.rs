//! The plugin: environment and standard input in, result and exit code out.
//!
//! A DEL never fails because the agent is away: it is journalled first, then the agent is tried once more. The agent listens
//! before it reads the journal, so either it hears the second try or it finds the record.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{self, Unanswered};
use crate::config::{self, Config};
use crate::env::{Call, Env, Role, Verb};
use crate::error::{Code, Error};
use crate::journal::{Journal, Pending};
use crate::protocol::{Reply, Request};
use crate::version::Version;

/// How long a journalled DEL waits for an agent that has just come up.
const SECOND_TRY: Duration = Duration::from_secs(5);

/// Runs the plugin. Success is exit code 0 and a result, if the verb has one; failure is exit code 1 and an error object.
pub fn run(env: &Env, mut stdin: impl Read, mut stdout: impl Write) -> ExitCode {
    let mut input = Vec::new();
    let read = stdin.read_to_end(&mut input);
    let answer = read.map_err(|error| Error::new(Code::Io, "cannot read standard input", error.to_string()));
    let (document, exit) = match answer.and_then(|_| answer_to(env, &input)) {
        Ok(document) => (document, ExitCode::SUCCESS),
        Err(error) => (
            Some(error_document(&error, config::answer_version(&input))),
            ExitCode::FAILURE,
        ),
    };
    let Some(document) = document else { return exit };
    let written = writeln!(stdout, "{document}").and_then(|()| stdout.flush());
    if written.is_err() { ExitCode::FAILURE } else { exit }
}

fn error_document(error: &Error, version: Version) -> Value {
    let mut document = json!(error);
    document["cniVersion"] = json!(version.text());
    document
}

fn answer_to(env: &Env, input: &[u8]) -> Result<Option<Value>, Error> {
    let call = env.call()?;
    match call.verb {
        Verb::Version => versions(input).map(Some),
        Verb::Del => delete(&call, input).map(|()| None),
        Verb::Add | Verb::Check | Verb::Status | Verb::Gc => request(&call, input),
    }
}

fn versions(input: &[u8]) -> Result<Value, Error> {
    let supported: Vec<_> = Version::ALL.iter().map(|version| version.text()).collect();
    Ok(json!({"cniVersion": config::answer_version(input).text(), "supportedVersions": supported}))
}

fn request(call: &Call, input: &[u8]) -> Result<Option<Value>, Error> {
    let config = Config::parse(input, call.role)?;
    let version = config.cni_version;
    verb_exists(call.verb, version)?;
    if call.verb == Verb::Gc && config.valid_attachments.is_none() {
        return Err(Error::new(
            Code::InvalidConfig,
            "invalid network configuration",
            "cni.dev/valid-attachments: missing; GC needs the list of attachments to keep, which may be empty",
        ));
    }
    if (call.verb, call.role) == (Verb::Add, Role::Main) {
        refuse_own_netns(call)?;
    }
    let socket = config.socket.clone();
    match client::ask(&socket, &Request::new(call, config), client::DEADLINE) {
        Ok(Reply::Ok(result)) => Ok(result
            .filter(|_| call.verb == Verb::Add)
            .map(|result| result.to_json(version))),
        Ok(Reply::Error(error)) => Err(error),
        Err(unanswered) => Err(no_answer(call.verb, &socket, unanswered)),
    }
}

/// A runtime starts the plugin in the node's namespace. A pod made there would take the node's default route.
fn refuse_own_netns(call: &Call) -> Result<(), Error> {
    let Some(netns) = &call.netns else { return Ok(()) };
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    // What cannot be read is no reason to refuse: the agent opens the path itself, and says what is wrong with it.
    match (identity(netns), identity(Path::new("/proc/self/ns/net"))) {
        (Ok(pod), Ok(node)) if pod == node => Err(Error::new(
            Code::InvalidNetns,
            "this is the node's own network namespace",
            format!("CNI_NETNS: {netns:?}; must be the container's network namespace"),
        )),
        _ => Ok(()),
    }
}

/// Verbs that came with a version are refused to configurations of an older one, as the specification wants.
fn verb_exists(verb: Verb, version: Version) -> Result<(), Error> {
    let since = match verb {
        Verb::Add | Verb::Del | Verb::Version => Version::V0_3_0,
        Verb::Check => Version::V0_4_0,
        Verb::Status | Verb::Gc => Version::V1_1_0,
    };
    if version >= since {
        return Ok(());
    }
    Err(Error::new(
        Code::IncompatibleVersion,
        "the configuration's version does not know this verb",
        format!("cniVersion: \"{version}\"; must be \"{since}\" or newer for {verb:?}"),
    ))
}

fn no_answer(verb: Verb, socket: &Path, unanswered: Unanswered) -> Error {
    let code = if verb == Verb::Status {
        Code::NotAvailable
    } else {
        Code::TryAgain
    };
    let socket = socket.display();
    match unanswered {
        Unanswered::Absent(error) => {
            let details = format!("socket {socket}: {error}; is the margay agent running on this node?");
            Error::new(code, "cannot reach the agent", details)
        }
        Unanswered::Silent(_) => Error::new(
            code,
            "the agent does not answer",
            format!("socket {socket}: {unanswered}"),
        ),
        Unanswered::Ended(_) | Unanswered::Broken(_) => Error::new(
            code,
            "lost the connection to the agent",
            format!("socket {socket}: {unanswered}"),
        ),
    }
}

fn delete(call: &Call, input: &[u8]) -> Result<(), Error> {
    let config = Config::parse_leniently(input, call.role)?;
    let request = Request::new(call, config);
    if let Ok(Reply::Ok(_)) = client::ask(&request.config.socket, &request, client::DEADLINE) {
        return Ok(());
    }
    let journal = Journal::new(&request.config.state_dir);
    journal.write_pending(&pending(&request)).map_err(|error| {
        let details = format!(
            "state_dir {}: {error}; the agent cannot be reached either",
            journal.dir().display()
        );
        Error::new(Code::Io, "cannot note the deletion", details)
    })?;
    // Whether it is heard or not, the record is there.
    let _ = client::ask(&request.config.socket, &request, SECOND_TRY);
    Ok(())
}

fn pending(request: &Request) -> Pending {
    Pending {
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
        network: request.config.name.clone(),
        ipam_only: request.role == Role::Ipam,
        netns: request.netns.clone(),
        args: request.args.clone(),
    }
}
