//! Failures that were said of late. A runtime asks for a pod again and again, for hours maybe: that it fails for the same reason is not
//! news each time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After this time the same failure is said again.
const AGAIN: Duration = Duration::from_secs(600);
/// Of how many pods it is remembered. Those of whom it was said first are forgotten first.
const MOST: usize = 1024;

/// The last failure of each pod: its code, and when it was said.
#[derive(Default)]
pub struct Failures(Mutex<BTreeMap<String, (u32, Instant)>>);

impl Failures {
    /// Whether a failure with this code is to be said now, and is. Without a pod it always is.
    pub fn is_news(&self, pod: Option<&str>, code: u32, now: Instant) -> bool {
        let Some(pod) = pod else { return true };
        let mut said = self.said();
        if let Some((before, at)) = said.get(pod)
            && *before == code
            && now.saturating_duration_since(*at) < AGAIN
        {
            return false;
        }
        let first = said.iter().min_by_key(|(_, (_, at))| *at).map(|(pod, _)| pod.clone());
        if let Some(first) = first.filter(|_| said.len() >= MOST) {
            said.remove(&first);
        }
        said.insert(pod.to_owned(), (code, now));
        true
    }

    /// A pod is attached.
    pub fn forget(&self, pod: Option<&str>) {
        if let Some(pod) = pod {
            self.said().remove(pod);
        }
    }

    fn said(&self) -> MutexGuard<'_, BTreeMap<String, (u32, Instant)>> {
        // No code that can panic runs while this is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_in_a_while_for_each_pod_and_code() {
        let (failures, start) = (Failures::default(), Instant::now());
        let check = |pod: Option<&str>, code: u32, seconds: u64, expected: bool| {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(failures.is_news(pod, code, now), expected, "{pod:?} {code} {seconds}");
        };
        check(Some("a"), 11, 0, true);
        check(Some("a"), 11, 1, false);
        check(Some("b"), 11, 1, true);
        check(Some("a"), 101, 2, true);
        check(Some("a"), 101, 601, false);
        check(Some("a"), 101, 602, true);
        check(None, 11, 602, true);
        check(None, 11, 602, true);
        failures.forget(None);
        check(Some("a"), 101, 603, false);
        failures.forget(Some("a"));
        check(Some("a"), 101, 603, true);
    }

    #[test]
    fn no_more_than_some_are_remembered() {
        let (failures, start) = (Failures::default(), Instant::now());
        for number in 0..=MOST {
            let now = start + Duration::from_micros(u64::try_from(number).unwrap_or_default());
            assert!(failures.is_news(Some(&number.to_string()), 11, now));
        }
        assert_eq!(failures.said().len(), MOST);
        assert!(!failures.is_news(Some("1"), 11, start));
        assert!(failures.is_news(Some("0"), 11, start));
    }
}
