//! What readers know of a server that cannot be used: while it is away one of them asks, and the others wait for what it hears.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use datastore::Trouble;

use super::error::ApiError;
use super::link::wait;

/// How long whoever asks is left alone with it.
const ALONE: Duration = Duration::from_secs(2);
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

    /// What came of asking.
    pub fn heard<T>(&mut self, now: Instant, answer: &Result<T, ApiError>) {
        let Some(error) = answer.as_ref().err().filter(|error| concerns_all(error)) else {
            self.away = None;
            return;
        };
        let failures = self.away.as_ref().map_or(0, |away| away.failures) + 1;
        self.away = Some(Away {
            error: error.clone(),
            failures,
            until: now + wait(failures),
        });
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

    /// What has been wrong for a while.
    pub fn trouble(&self, now: Instant) -> Option<Trouble> {
        let old = |since: Instant| now.saturating_duration_since(since) >= SPOKEN_OF;
        let (_, error) = self.broken.values().find(|(since, _)| old(*since))?;
        Some(Trouble::new(error.reason(), error.to_string()))
    }
}

/// Whether whatever else is asked fails for the same reason.
fn concerns_all(error: &ApiError) -> bool {
    matches!(
        error,
        ApiError::Config(_)
            | ApiError::Unreachable(_)
            | ApiError::Proxy { .. }
            | ApiError::Certificate(_)
            | ApiError::Unauthorized(_)
            | ApiError::Timeout { .. }
    )
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
        outage.heard(start, &Err::<(), _>(refused()));
        assert_eq!(outage.may_ask(start), Err(refused()));
        let later = start + Duration::from_secs(1);
        assert_eq!(outage.may_ask(later), Ok(()));
        assert_eq!(outage.may_ask(later), Err(refused()), "somebody asks already");
        outage.heard(later, &Ok(()));
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
                outage.heard(now, &Err::<(), _>(refused()));
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
        outage.heard(now, &Err::<(), _>(forbidden));
        assert_eq!(outage.may_ask(now), Ok(()));
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
