//! Several writes at once, and several writers.

use api::Kind;
use futures::future::join_all;

use super::parts::*;
use super::{Outcome, Subject};
use crate::store::{Scope, StoreError, Write};

pub(super) async fn several_writes_are_done_in_their_order(subject: Subject) -> Outcome {
    let store = subject.store;
    same("no writes", store.write_all(vec![]).await, vec![])?;
    let old = ok(store.create(set("old", "1")).await)?;
    let doomed = ok(store.create(set("doomed", "1")).await)?;
    let writes = vec![
        Write::Create(set("new", "1")),
        Write::Update(set("old", "2"), old.revision.clone()),
        Write::Delete(key("doomed"), Some(doomed.revision.clone())),
        // Judged by what the ones before it left.
        Write::Create(set("doomed", "2")),
    ];
    let mut answers = Vec::new();
    for answer in store.write_all(writes).await {
        answers.push(ok(answer)?);
    }
    let names: Vec<_> = answers.iter().map(|stored| stored.resource.key()).collect();
    same(
        "the answers",
        names,
        vec![key("new"), key("old"), key("doomed"), key("doomed")],
    )?;
    same("what was deleted", answers.get(2), Some(&doomed))?;
    for (name, index) in [("new", 0), ("old", 1), ("doomed", 3)] {
        same("get", store.get(&key(name)).await, Ok(answers.get(index).cloned()))?;
    }
    same("the update", count(&answers[1].resource), 2)
}

pub(super) async fn several_writes_end_at_the_first_that_fails(subject: Subject) -> Outcome {
    let store = subject.store;
    let old = ok(store.create(set("old", "1")).await)?;
    ok(store.update(set("old", "2"), &old.revision).await)?;
    let writes = vec![
        Write::Create(set("first", "1")),
        Write::Update(set("old", "3"), old.revision),
        Write::Create(set("last", "1")),
    ];
    let answers = store.write_all(writes).await;
    same("the number of answers", answers.len(), 2)?;
    same(
        "the refused one",
        answers[1].as_ref().err(),
        Some(&StoreError::Conflict(key("old"))),
    )?;
    same(
        "the first",
        store.get(&key("first")).await,
        answers[0].clone().map(Some),
    )?;
    same("the last", store.get(&key("last")).await, Ok(None))
}

pub(super) async fn of_concurrent_creates_one_wins(subject: Subject) -> Outcome {
    let store = subject.store;
    let results = join_all((0..16).map(|n| store.create(set("a", &n.to_string())))).await;
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    same("winners", won.len(), 1)?;
    for lost in lost {
        same("a loser", lost, Err(StoreError::Exists(key("a"))))?;
    }
    let winner = ok(won.into_iter().next().ok_or("nobody won")?)?;
    same("get", store.get(&key("a")).await, Ok(Some(winner)))
}

pub(super) async fn concurrent_increments_are_never_lost(subject: Subject) -> Outcome {
    const WRITERS: usize = 8;
    const EACH: usize = 12;
    let store = subject.store;
    join_all((0..WRITERS).map(|_| increment(store.as_ref(), EACH)))
        .await
        .into_iter()
        .collect::<Outcome>()?;
    let counted = ok(store.get(&key("counter")).await)?.ok_or("it is gone")?;
    same("the counter", count(&counted.resource), WRITERS * EACH)
}

pub(super) async fn all_watchers_see_every_change_in_order(subject: Subject) -> Outcome {
    const WRITERS: usize = 6;
    const EACH: usize = 10;
    let store = subject.store;
    let start = ok(store.list(&Scope::All).await)?.revision;
    let watchers = (0..4).map(|n| {
        let from = (n % 2 == 0).then(|| start.clone());
        let watch = store.watch(Scope::Kind(Kind::GlobalNetworkSet), from);
        async move { collect_counts(watch, WRITERS * EACH).await }
    });
    let writers = join_all((0..WRITERS).map(|_| increment(store.as_ref(), EACH)));
    let (written, seen) = futures::join!(writers, join_all(watchers));
    written.into_iter().collect::<Outcome>()?;
    for (n, seen) in seen.into_iter().enumerate() {
        let seen = seen?;
        // A watch from nothing may find the first counts already there: the newest of them, once.
        let first = if n % 2 == 0 {
            1
        } else {
            seen.first().copied().unwrap_or(1)
        };
        same(
            &format!("what watcher {n} saw"),
            seen,
            (first..=WRITERS * EACH).collect(),
        )?;
    }
    Ok(())
}
