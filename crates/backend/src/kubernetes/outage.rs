//! What readers know of a server that cannot be used: while it is away one of them asks, and the others wait for what it hears.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use datastore::Trouble;

use super::error::ApiError;
use super::link::wait;

/// How long whoever asks is left alone with it: longer than he waits for an answer.
const ALONE: Duration = Duration::from_secs(22);
/// Trouble that is younger is not spoken of: watches end all the time and go on.
const SPOKEN_OF: Duration = Duration::from_secs(2);

/// What went wrong lately.
#[derive(Debug, Default)]
pub struct Outage {
    /// The server as a whole: why it cannot be used, how often in a row, and when it may be asked again.
    away: Option<Away>,
    /// Rows whose watches are broken: since when, and why.
    broken: BTreeMap<usize, (Instant, ApiError)>,
}

#[derive(Debug)]
struct Away {
    error: ApiError,
    failures: u32,
    until: Instant,
}

impl Outage {
    /// Whether a reader may ask now.
    ///
    /// # Errors
    /// What was heard last, if it is too early to ask again.
    pub fn may_ask(&mut self, now: Instant) -> Result<(), ApiError> {
        match &mut self.away {
            Some(away) if now < away.until => Err(away.error.clone()),
            Some(away) => {
                away.until = now + ALONE;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What came of asking. The same trouble keeps the words in which it was heard first.
    ///
    /// # Errors
    /// Those of the answer.
    pub fn heard<T>(&mut self, now: Instant, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        let error = match answer {
            Err(error) if concerns_all(&error) => error,
            answer => {
                self.away = None;
                return answer;
            }
        };
        let before = self.away.take();
        let failures = before.as_ref().map_or(0, |away| away.failures) + 1;
        let error = match before {
            Some(away) if is_same(&away.error, &error) => away.error,
            _ => error,
        };
        self.away = Some(Away {
            error: error.clone(),
            failures,
            until: now + wait(failures),
        });
        Err(error)
    }

    /// A row's watch is broken, or goes on.
    pub fn watch(&mut self, row: usize, now: Instant, error: Option<&ApiError>) {
        match error {
            Some(error) => {
                let since = self.broken.get(&row).map_or(now, |(since, _)| *since);
                self.broken.insert(row, (since, error.clone()));
            }
            None => drop(self.broken.remove(&row)),
        }
    }

    /// Whether a row's watch is broken now, if only for a moment.
    pub fn is_broken(&self, row: usize) -> bool {
        self.broken.contains_key(&row)
    }

    /// What has been wrong for a while.
    pub fn trouble(&self, now: Instant) -> Option<Trouble> {
        let old = |since: Instant| now.saturating_duration_since(since) >= SPOKEN_OF;
        let (_, error) = self.broken.values().find(|(since, _)| old(*since))?;
        Some(Trouble::new(error.reason(), error.to_string()))
    }
}

/// Whether whatever else is asked fails for the same reason, or may: one answer that comes shows that it does not.
fn concerns_all(error: &ApiError) -> bool {
    matches!(
        error,
        ApiError::Config(_)
            | ApiError::Unreachable(_)
            | ApiError::Proxy { .. }
            | ApiError::Certificate(_)
            | ApiError::Unauthorized(_)
            | ApiError::Timeout { .. }
            | ApiError::Half(_)
            | ApiError::Server { .. }
    )
}

/// Whether it is the same trouble, whatever was asked.
fn is_same(one: &ApiError, other: &ApiError) -> bool {
    one == other || matches!((one, other), (ApiError::Timeout { .. }, ApiError::Timeout { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> ApiError {
        ApiError::Unreachable("refused".into())
    }

    #[test]
    fn while_the_server_is_away_one_reader_asks() {
        let start = Instant::now();
        let mut outage = Outage::default();
        assert_eq!(outage.may_ask(start), Ok(()));
        assert_eq!(outage.heard(start, Err::<(), _>(refused())), Err(refused()));
        assert_eq!(outage.may_ask(start), Err(refused()));
        let later = start + Duration::from_secs(1);
        assert_eq!(outage.may_ask(later), Ok(()));
        assert_eq!(outage.may_ask(later), Err(refused()), "somebody asks already");
        assert_eq!(outage.heard(later, Ok(())), Ok(()));
        assert_eq!(outage.may_ask(later), Ok(()));
    }

    #[test]
    fn the_time_between_grows_to_some_ten_seconds() {
        let mut now = Instant::now();
        let mut outage = Outage::default();
        let mut asked = 0;
        let end = now + Duration::from_secs(3600);
        while now < end {
            if outage.may_ask(now).is_ok() {
                asked += 1;
                assert!(outage.heard(now, Err::<(), _>(refused())).is_err());
            }
            now += Duration::from_millis(50);
        }
        assert!((200..1000).contains(&asked), "{asked} times in an hour");
    }

    #[test]
    fn what_concerns_one_kind_keeps_nobody_from_another() {
        let now = Instant::now();
        let mut outage = Outage::default();
        let forbidden = ApiError::Forbidden {
            verb: "list",
            resource: "nodes".into(),
            message: String::new(),
        };
        assert!(outage.heard(now, Err::<(), _>(forbidden)).is_err());
        assert_eq!(outage.may_ask(now), Ok(()));
    }

    #[test]
    fn a_server_that_says_nothing_is_one_trouble_whatever_is_asked() {
        let now = Instant::now();
        let mut outage = Outage::default();
        let late = |request: &str| ApiError::Timeout {
            request: request.into(),
            seconds: 20,
        };
        let mut check = |heard: ApiError, said: ApiError| {
            assert_eq!(outage.heard(now, Err::<(), _>(heard)), Err(said.clone()));
            assert_eq!(outage.may_ask(now), Err(said));
        };
        check(late("list pods"), late("list pods"));
        check(late("list nodes"), late("list pods"));
        check(refused(), refused());
        check(late("list nodes"), late("list nodes"));
    }

    #[test]
    fn only_trouble_that_lasts_is_spoken_of() {
        let start = Instant::now();
        let mut outage = Outage::default();
        outage.watch(3, start, Some(&refused()));
        assert_eq!(outage.trouble(start), None);
        outage.watch(3, start + SPOKEN_OF, Some(&refused()));
        let trouble = outage.trouble(start + SPOKEN_OF).expect("it lasts");
        assert_eq!(
            (trouble.reason.word(), trouble.text.as_str()),
            ("Unreachable", "the API server cannot be reached: refused")
        );
        outage.watch(3, start + SPOKEN_OF, None);
        assert_eq!(outage.trouble(start + SPOKEN_OF), None);
    }
}
