//! The examination that every [`Store`](crate::Store) takes.
//!
//! Each check gets a store of its own, empty at the start, and says what was wrong. A check whose watch never speaks
//! waits for ever: run them with a time limit where there is a clock.

use futures::future::{BoxFuture, FutureExt};

use crate::store::SharedStore;
use objects::*;
use together::*;
use watches::*;

mod objects;
mod parts;
mod together;
mod watches;

/// One check: `Err` says what the store did wrong.
pub type Check = fn(Subject) -> BoxFuture<'static, Outcome>;

/// What a check says.
pub type Outcome = Result<(), String>;

/// The store under examination.
pub struct Subject {
    store: SharedStore,
    names_its_objects: bool,
    compact: Option<Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>>,
}

impl Subject {
    /// A store, empty.
    pub fn new(store: SharedStore) -> Self {
        Self {
            store,
            names_its_objects: false,
            compact: None,
        }
    }

    /// One that gives UIDs, creation times and generations itself, whatever its writers say.
    pub fn that_names_its_objects(self) -> Self {
        Self {
            names_its_objects: true,
            ..self
        }
    }

    /// With a way to make it forget the changes so far; without, what needs compaction is not checked.
    pub fn with_compact(self, compact: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self {
            compact: Some(Box::new(compact)),
            ..self
        }
    }
}

macro_rules! checks {
    ($($name:ident),* $(,)?) => { vec![$((stringify!($name), |subject| $name(subject).boxed())),*] };
}

/// All checks, each with its name.
pub fn all() -> Vec<(&'static str, Check)> {
    checks![
        what_was_created_is_read_back,
        everything_in_a_resource_is_kept,
        an_existing_key_is_not_created_again,
        what_is_not_there_is_none,
        a_resource_needs_a_name,
        a_wrong_resource_is_not_made_and_is_kept_as_it_is,
        every_write_has_a_new_revision,
        the_resource_version_is_the_stores_to_set,
        an_update_needs_the_current_revision,
        an_update_of_nothing_is_not_found,
        finalizers_are_set_alone,
        a_delete_answers_what_was_deleted,
        a_delete_with_a_revision_needs_the_current_one,
        a_recreated_resource_does_not_match_its_old_revision,
        a_list_is_ordered_and_keeps_to_its_scope,
        a_watch_from_nothing_brings_what_is_there_then_in_sync_then_changes,
        a_watch_of_nothing_is_in_sync_at_once,
        a_watch_from_a_list_has_no_gap_and_no_duplicate,
        a_watch_continues_from_any_events_revision,
        a_watch_keeps_to_its_scope,
        a_revision_of_another_store_means_list_again,
        a_compacted_revision_means_list_again,
        a_dropped_watch_disturbs_nobody,
        several_writes_are_done_in_their_order,
        several_writes_end_at_the_first_that_fails,
        of_concurrent_creates_one_wins,
        concurrent_increments_are_never_lost,
        all_watchers_see_every_change_in_order,
    ]
}

#[cfg(test)]
mod tests;
