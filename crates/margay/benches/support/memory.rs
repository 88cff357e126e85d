//! What a process takes.

/// In MiB, from `smaps_rollup`.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    /// The resident set.
    pub rss: f64,
    /// With shared pages by their share.
    pub pss: f64,
}

impl Memory {
    /// Of a process; zero if it is gone.
    pub fn of(pid: i32) -> Memory {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        };
        Memory {
            rss: field("Rss:").unwrap_or_default() / 1024.0,
            pss: field("Pss:").unwrap_or_default() / 1024.0,
        }
    }
}
