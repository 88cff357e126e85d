//! A bearer token in a file, which somebody renews there. Space around it is none of it: an editor ends a file with a new line.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::error::ApiError;

/// The file is read again after this time, as others do.
const FRESH: Duration = Duration::from_secs(50);

/// The file, and what it said last.
pub struct TokenFile {
    path: PathBuf,
    held: Mutex<Held>,
}

struct Held {
    header: HeaderValue,
    read: Instant,
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ApiError::Config`] if that is not possible, [`ApiError::Unauthorized`] if it holds no token.
    pub fn open(path: impl Into<PathBuf>, now: Instant) -> Result<Self, ApiError> {
        let path = path.into();
        let header = read(&path)?;
        Ok(Self {
            path,
            held: Mutex::new(Held { header, read: now }),
        })
    }

    /// The header `Authorization`. While the file cannot be read, or holds no token, the last one stays.
    pub fn header(&self, now: Instant) -> HeaderValue {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(held.read) >= FRESH {
            held.read = now;
            if let Ok(header) = read(&self.path) {
                held.header = header;
            }
        }
        held.header.clone()
    }
}

fn read(path: &Path) -> Result<HeaderValue, ApiError> {
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| ApiError::Config(format!("token file {shown}: {error}")))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(ApiError::Unauthorized(format!("token file {shown} is empty")));
    }
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
        ApiError::Unauthorized(format!(
            "token file {shown} must hold a token and nothing else, in one line"
        ))
    })?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_token_and_space_around_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let check = |text: &str, expected: Result<&str, &str>| {
            std::fs::write(&path, text).expect("it is written");
            match (TokenFile::open(&path, Instant::now()), expected) {
                (Ok(file), Ok(expected)) => assert_eq!(file.header(Instant::now()), expected, "{text:?}"),
                (Err(ApiError::Unauthorized(why)), Err(part)) => assert!(why.contains(part), "{text:?}: {why}"),
                (file, _) => panic!("{text:?}: {:?}", file.map(|_| ())),
            }
        };
        check("abc", Ok("Bearer abc"));
        check("abc\n", Ok("Bearer abc"));
        check(" abc\r\n\n", Ok("Bearer abc"));
        check("", Err("is empty"));
        check("\n", Err("is empty"));
        check("a\nb", Err("in one line"));
        let absent = TokenFile::open(folder.path().join("none"), Instant::now());
        assert!(matches!(absent, Err(ApiError::Config(_))));
    }

    #[test]
    fn it_is_read_again_and_the_last_one_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let start = Instant::now();
        std::fs::write(&path, "one\n").expect("it is written");
        let file = TokenFile::open(&path, start).expect("a token");
        // Seconds, what the file says by then if it is there, and what is sent.
        for (second, text, expected) in [
            (0, Some("two"), "Bearer one"),
            (49, Some("two"), "Bearer one"),
            (50, Some("two"), "Bearer two"),
            (60, Some("three"), "Bearer two"),
            (100, Some(""), "Bearer two"),
            (150, None, "Bearer two"),
            (200, Some("four\n"), "Bearer four"),
        ] {
            match text {
                Some(text) => std::fs::write(&path, text).expect("it is written"),
                None => std::fs::remove_file(&path).expect("it was there"),
            }
            let sent = file.header(start + Duration::from_secs(second));
            assert_eq!(sent, expected, "after {second} s");
        }
    }
}
