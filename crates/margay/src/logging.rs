//! What is logged, where to, and from which level on.

use std::io::{IsTerminal, Write};

use agent::LogSeverity;
use clap::{Args, ValueEnum};
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// From which level on where nobody says otherwise.
const DEFAULT: &str = "info";

/// The flags about logging.
#[derive(Args)]
pub struct Log {
    /// What to log: a level, or a filter such as `info,bgp=debug` [default: logSeverityScreen of the FelixConfiguration (controllers: of the KubeControllersConfiguration), or info]
    #[arg(long, env = "MARGAY_LOG", global = true, value_name = "FILTER", value_parser = readable)]
    log: Option<String>,
    /// How to log
    #[arg(
        long,
        env = "MARGAY_LOG_FORMAT",
        global = true,
        default_value = "text",
        value_name = "FORMAT"
    )]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people
    #[value(alias = "")]
    Text,
    /// One JSON object a line
    Json,
}

/// A filter as it was given, if it can be read. A variable that is set to nothing means the default.
fn readable(filter: &str) -> Result<String, String> {
    match EnvFilter::try_new(filter) {
        Ok(_) => Ok(filter.to_owned()),
        Err(error) => Err(format!(
            "{error}: a level (error, warn, info, debug, trace, off) or a filter such as info,bgp=debug"
        )),
    }
}

/// Changes the level of a running process to what the datastore says, or back (`None`). Does nothing if the flag or its
/// variable was given: whoever starts the process has the last word.
pub type SetSeverity = Box<dyn Fn(Option<LogSeverity>) + Send>;

impl Log {
    /// Starts to log on standard error.
    pub fn start(&self) -> SetSeverity {
        let ansi = std::io::stderr().is_terminal();
        let (subscriber, set) = self.build(std::io::stderr, ansi);
        if tracing::subscriber::set_global_default(subscriber).is_err() {
            let _ = writeln!(
                std::io::stderr(),
                "a log is running already: the second one stays silent"
            );
        }
        set
    }

    fn build<W>(&self, writer: W, ansi: bool) -> (Box<dyn Subscriber + Send + Sync>, SetSeverity)
    where
        W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
    {
        let given = self.log.as_deref().filter(|filter| !filter.is_empty());
        let filter = given.and_then(|given| EnvFilter::try_new(given).ok());
        let filter = filter.unwrap_or_else(|| at(DEFAULT));
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
        match self.log_format {
            LogFormat::Text => {
                let builder = builder.with_ansi(ansi).with_filter_reloading();
                let handle = builder.reload_handle();
                let reload = move |filter| handle.reload(filter).is_ok();
                (Box::new(builder.finish()), setter(given.is_some(), reload))
            }
            LogFormat::Json => {
                let builder = builder.json().with_filter_reloading();
                let handle = builder.reload_handle();
                let reload = move |filter| handle.reload(filter).is_ok();
                (Box::new(builder.finish()), setter(given.is_some(), reload))
            }
        }
    }
}

fn setter(fixed: bool, reload: impl Fn(EnvFilter) -> bool + Send + 'static) -> SetSeverity {
    Box::new(move |severity| {
        if !fixed {
            let level = severity.map_or(DEFAULT, level);
            // Fails only after the log is gone.
            let changed = reload(at(level));
            tracing::info!(level, changed, "log level set by the datastore");
        }
    })
}

/// From a level on. The Kubernetes client reports each failed request as an error; whoever asked says what that means.
fn at(level: &str) -> EnvFilter {
    EnvFilter::new(format!("{level},kube_client=off"))
}

/// What a severity is called here. Nothing is fatal without being an error.
fn level(severity: LogSeverity) -> &'static str {
    match severity {
        LogSeverity::Trace => "trace",
        LogSeverity::Debug => "debug",
        LogSeverity::Info => "info",
        LogSeverity::Warning => "warn",
        LogSeverity::Error | LogSeverity::Fatal => "error",
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    /// The most detailed level that is logged after each of these words of the datastore.
    #[track_caller]
    fn check(given: Option<&str>, words: &[Option<LogSeverity>], expected: &[Level]) {
        for log_format in [LogFormat::Text, LogFormat::Json] {
            let log = Log {
                log: given.map(str::to_owned),
                log_format,
            };
            let (subscriber, set) = log.build(std::io::sink, false);
            let levels: Vec<Level> = tracing::subscriber::with_default(subscriber, || {
                let told = words.iter().map(|word| {
                    set(*word);
                    most_detailed()
                });
                std::iter::once(most_detailed()).chain(told).collect()
            });
            assert_eq!(levels, expected);
        }
    }

    fn most_detailed() -> Level {
        let enabled = [
            (Level::TRACE, tracing::enabled!(Level::TRACE)),
            (Level::DEBUG, tracing::enabled!(Level::DEBUG)),
            (Level::INFO, tracing::enabled!(Level::INFO)),
            (Level::WARN, tracing::enabled!(Level::WARN)),
        ];
        let first = enabled.into_iter().find(|(_, enabled)| *enabled);
        first.map_or(Level::ERROR, |(level, _)| level)
    }

    #[test]
    fn the_datastore_sets_the_level_of_a_running_process_unless_it_was_given() {
        use LogSeverity::{Debug, Error, Fatal, Info, Trace, Warning};
        let all = [Trace, Debug, Info, Warning, Error, Fatal].map(Some);
        let levels = [
            Level::INFO,
            Level::TRACE,
            Level::DEBUG,
            Level::INFO,
            Level::WARN,
            Level::ERROR,
            Level::ERROR,
        ];
        check(None, &all, &levels);
        check(None, &[Some(Debug), None], &[Level::INFO, Level::DEBUG, Level::INFO]);
        check(Some(""), &[Some(Debug)], &[Level::INFO, Level::DEBUG]);
        check(Some("warn"), &[Some(Debug), None], &[Level::WARN; 3]);
        check(Some("info"), &[Some(Debug)], &[Level::INFO; 2]);
    }
}
