//! How long what fails is tried again before anybody hears of it.

use std::time::Duration;

use tokio::time::Instant;

/// How long trouble may last.
const QUIET: Duration = Duration::from_secs(60);

/// Since when everything fails, and how often it has.
#[derive(Default)]
pub(super) struct Patience(Option<(Instant, u32)>);

impl Patience {
    /// An attempt ended. `well`: it had done for some time what it should, however it ended. Answers how often in a row it was
    /// otherwise, this one included; `None`: for too long.
    pub fn ended(&mut self, now: Instant, well: bool) -> Option<u32> {
        if well {
            self.0 = None;
        }
        let (since, failures) = self.0.get_or_insert((now, 0));
        *failures += 1;
        (now.duration_since(*since) <= QUIET).then_some(*failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_begins_with_the_first_failure() {
        // Seconds, whether it went well until then, and what is answered.
        let check = |ends: &[(u64, bool, Option<u32>)]| {
            let (start, mut patience) = (Instant::now(), Patience::default());
            for (second, well, expected) in ends {
                let answer = patience.ended(start + Duration::from_secs(*second), *well);
                assert_eq!(answer, *expected, "{ends:?} at {second}");
            }
        };
        check(&[
            (0, false, Some(1)),
            (1, false, Some(2)),
            (60, false, Some(3)),
            (61, false, None),
        ]);
        // A watch that the server ended as promised, then one that lived for two minutes and was cut off.
        check(&[
            (0, true, Some(1)),
            (120, true, Some(1)),
            (150, false, Some(2)),
            (181, false, None),
        ]);
        check(&[
            (0, false, Some(1)),
            (59, true, Some(1)),
            (119, false, Some(2)),
            (120, false, None),
        ]);
    }
}
