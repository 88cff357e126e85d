mod build;
mod closed;
mod expect;
mod incremental;
mod misses;
mod random;
mod rehearsal;
mod verdicts;
