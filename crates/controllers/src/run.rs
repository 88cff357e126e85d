//! The loop: the datastore's changes, leadership, time and questions in; actions out.
//!
//! ```text
//!   syncer ──┐                        ┌──> worker (one batch of actions after another) ──> fence ──> datastore
//!   leader ──┼──> loop { desk } ──────┤
//!   http ────┘        ^               └──> answers
//!                     └── results ────────── worker
//! ```
//!
//! The worker does one batch at a time; while it is busy nothing is decided, because what it writes is not seen yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datastore::{SharedStore, Syncer};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

use crate::action::Action;
use crate::desk::Desk;
use crate::execute::{ExecuteError, Executor, Outcome};
use crate::fence::{Fenced, Gate};
use crate::leadership::{Leadership, Wait};
use crate::report::{self, Report, Work};
use crate::settings::Settings;
use crate::world::World;

/// A question for the loop.
pub type Question = oneshot::Sender<Report>;

/// What the loop is made of.
pub struct Parts {
    /// Reads go here directly, writes through a fence.
    pub store: SharedStore,
    /// Who may write.
    pub leadership: Arc<dyn Leadership>,
    /// What decides.
    pub desk: Desk,
    /// Questions.
    pub questions: mpsc::UnboundedReceiver<Question>,
    /// Hears what is in force, whenever it changes.
    pub settings: watch::Sender<Settings>,
    /// Ends when the process is to end.
    pub stop: BoxFuture<'static, ()>,
}

/// How long the last write may take when the process is to end, and then the word to others that they may lead.
const FAREWELL: Duration = Duration::from_secs(8);

/// What leadership says.
enum Lead {
    Waits(Wait),
    Begun,
    Ended(String),
}

/// What the worker says.
enum Worked {
    Begins(String),
    Result(Action, Result<Outcome, ExecuteError>),
    BatchEnds,
}

/// Time that only goes forward: the wall clock's at the start, and what the monotonic clock has counted since. A wall clock
/// that is set must not make a leak older than it is.
struct Clock {
    wall: Timestamp,
    start: Instant,
}

impl Clock {
    fn now(&self) -> Timestamp {
        let since = SignedDuration::try_from(self.start.elapsed()).unwrap_or(SignedDuration::MAX);
        self.wall.checked_add(since).unwrap_or(Timestamp::MAX)
    }
}

/// Runs until it is told to stop.
///
/// # Errors
/// A part of it ended, and which.
pub async fn run(parts: Parts) -> Result<(), String> {
    let Parts {
        store,
        leadership,
        mut desk,
        mut questions,
        settings,
        mut stop,
    } = parts;
    let clock = Clock {
        wall: Timestamp::now(),
        start: Instant::now(),
    };
    let started = clock.wall;
    let gate = Gate::default();
    let fenced = Fenced::new(store.clone(), gate.clone());
    let executor = Arc::new(Executor::new(Arc::new(fenced)));
    let backoff = |attempt: u32| tokio::time::sleep(wait(attempt)).boxed();
    let mut syncer = Syncer::new(Arc::clone(&store), World::scopes(), backoff);
    let (lead_out, mut lead) = mpsc::unbounded_channel();
    let (worked_out, mut worked) = mpsc::unbounded_channel();
    let campaign = campaign(Arc::clone(&leadership), gate.clone(), lead_out);
    futures::pin_mut!(campaign);
    let mut work = Work::default();
    let mut is_busy = false;
    loop {
        if !is_busy {
            let actions = desk.decide(clock.now());
            if !actions.is_empty() {
                is_busy = true;
                tokio::spawn(perform(
                    actions,
                    Arc::clone(&executor),
                    gate.clone(),
                    worked_out.clone(),
                ));
            }
        }
        settings.send_if_modified(|current| {
            let differs = current != desk.settings();
            if differs {
                current.clone_from(desk.settings());
            }
            differs
        });
        let wakeup = desk.next_wakeup().filter(|_| !is_busy);
        tokio::select! {
            event = syncer.next() => match event {
                Some(event) => desk.sync(event),
                None => return Err("the datastore's changes have ended".into()),
            },
            said = lead.recv() => match said {
                Some(Lead::Waits(why)) => {
                    match &why {
                        Wait::Other(why) => tracing::info!(why, "waiting to lead"),
                        Wait::Trouble(why) => tracing::warn!(why, "waiting to lead"),
                    }
                    work.waits = Some(why);
                }
                Some(Lead::Begun) => {
                    tracing::info!("this process leads");
                    work.waits = None;
                    desk.lead();
                }
                Some(Lead::Ended(why)) => {
                    tracing::warn!(why, "this process leads no more");
                    desk.follow();
                }
                None => return Err("leadership has ended".into()),
            },
            said = worked.recv() => match said {
                Some(Worked::Begins(what)) => work.busy = Some((what, Instant::now())),
                Some(Worked::Result(action, result)) => note(&mut desk, &mut work, clock.now(), &action, result),
                Some(Worked::BatchEnds) => {
                    is_busy = false;
                    work.busy = None;
                    executor.forget();
                }
                None => return Err("the worker has ended".into()),
            },
            question = questions.recv() => match question {
                Some(question) => {
                    let trouble = store.trouble();
                    drop(question.send(report::assemble(&desk, &work, started, trouble.as_ref())));
                }
                None => return Err("nobody asks any more".into()),
            },
            () = until(&clock, wakeup) => {}
            () = &mut campaign => return Err("leadership has ended".into()),
            () = &mut stop => {
                farewell(&gate, leadership.as_ref()).await;
                return Ok(());
            }
        }
    }
}

/// The next one may lead as soon as nothing of ours is under way any more. If that takes too long, or longer than the term, it
/// waits as if we had died.
async fn farewell(gate: &Gate, leadership: &dyn Leadership) {
    let term = gate.close();
    let quiet = tokio::time::timeout(FAREWELL, gate.quiet()).await;
    match quiet.is_ok() && term.is_none_or(|left| left().is_some()) {
        true => leadership.release().await,
        false => tracing::warn!("a write may still be under way: others are left to find out that this process ends"),
    }
}

/// Becomes the leader again and again. The gate closes the moment a term ends.
async fn campaign(leadership: Arc<dyn Leadership>, gate: Gate, out: mpsc::UnboundedSender<Lead>) {
    let say = |why: Wait| drop(out.send(Lead::Waits(why)));
    loop {
        let term = leadership.acquire(&say).await;
        gate.open(term.left);
        if out.send(Lead::Begun).is_err() {
            return;
        }
        let why = term.ended.await;
        gate.close();
        if out.send(Lead::Ended(why)).is_err() {
            return;
        }
    }
}

async fn perform(actions: Vec<Action>, executor: Arc<Executor>, gate: Gate, out: mpsc::UnboundedSender<Worked>) {
    for action in actions {
        if !gate.is_open() {
            break;
        }
        let _ = out.send(Worked::Begins(action.to_string()));
        let result = executor.perform(Timestamp::now(), &action).await;
        let _ = out.send(Worked::Result(action, result));
    }
    let _ = out.send(Worked::BatchEnds);
}

fn note(desk: &mut Desk, work: &mut Work, now: Timestamp, action: &Action, result: Result<Outcome, ExecuteError>) {
    let counts = work.actions.entry(action.verb().to_owned()).or_default();
    let what = action.to_string();
    if result.is_ok() {
        work.failing.ended(&what);
    }
    match result {
        Ok(Outcome::Done) => {
            counts.done += 1;
            work.failure = None;
            tracing::info!("{what}");
            if let Action::FreeAddresses(doomed) = action {
                for one in doomed {
                    work.reclaimed.count(desk, one.address.ip, &one.node);
                }
            }
        }
        Ok(Outcome::Nothing(why)) => {
            counts.nothing += 1;
            tracing::debug!("{what}: {why}");
            desk.not_done(action);
        }
        Err(error) => {
            counts.failed += 1;
            let why = error.to_string();
            match work.failing.failed(now, &what, &why) {
                true => tracing::warn!("{what}: {why}; trying again"),
                false => tracing::debug!("{what}: {why}; trying again"),
            }
            work.failure = Some(format!("{what}: {why}"));
            desk.not_done(action);
            desk.failed(now);
        }
    }
}

async fn until(clock: &Clock, wakeup: Option<Timestamp>) {
    match wakeup {
        Some(at) => {
            let left = at.duration_since(clock.now());
            tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        }
        None => std::future::pending().await,
    }
}

/// 50 ms, doubling up to 5 s, spread so that many do not come at once.
fn wait(attempt: u32) -> Duration {
    let base = Duration::from_millis(50) * 2u32.saturating_pow(attempt.saturating_sub(1).min(7));
    base.min(Duration::from_secs(5)).mul_f64(rand::random_range(0.75..1.25))
}

#[cfg(test)]
mod tests;
